package sim

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// Fault is something that went wrong.
type Fault string

// Faults of calls.
const (
	fine       Fault = ""
	refused    Fault = "fails before its effect"
	vanished   Fault = "request lost"
	lostAnswer Fault = "answer lost"
	late       Fault = "late effect"
	slow       Fault = "slow"
	stale      Fault = "stale read"
	ownEcho    Fault = "no from its own first try"
	garbage    Fault = "garbage answer"
	cutStream  Fault = "stream cut"
	blockedOut Fault = "link blocked on the way there"
	blockedIn  Fault = "link blocked on the way back"
	throttled  Fault = "key throttled"
	storm      Fault = "503 for a prefix"
	syncError  Fault = "EIO on fsync"
	diskFull   Fault = "disk full"
)

// Faults of things.
const (
	killed        Fault = "kill -9"
	powerCut      Fault = "power cut"
	allKilled     Fault = "all killed at once"
	diskLost      Fault = "disk lost"
	diskMoved     Fault = "disk moved"
	stopped       Fault = "SIGSTOP"
	resumed       Fault = "SIGCONT"
	drained       Fault = "SIGTERM"
	killedAtStep  Fault = "kill -9 before or after a step"
	stoppedAtStep Fault = "SIGSTOP before or after a step"
	cutShort      Fault = "killed in its drain"
	scaledOut     Fault = "gateway added"
	scaledIn      Fault = "gateway removed"
	tableOut      Fault = "table outage"
	bucketOut     Fault = "bucket outage"
	hoursOut      Fault = "outage of three hours"
	severed       Fault = "link severed"
	severedOne    Fault = "link severed one way"
	// Not of a family: in each run but the quiet ones.
	clockJumped Fault = "wall clock jumped"
)

// The two services, as ends of links.
const (
	tableName  = "table"
	bucketName = "bucket"
	anyone     = "*"
)

// link is one direction between two ends.
type link struct{ from, to string }

// weather decides what goes wrong with calls, and counts it.
type weather struct {
	options Options
	dice    *dice

	mu    sync.Mutex
	calm  bool
	fired map[Fault]int
	began time.Time
	// episodes says when what happened to whom.
	episodes []string
	// blocks counts the episodes that block a link.
	blocks map[link]int
	// throttles and storms count episodes by prefix of a key.
	throttles, storms map[string]int
}

func newWeather(o Options) *weather {
	return &weather{options: o, dice: newDice(o.Seed, "weather"), fired: make(map[Fault]int), began: time.Now(), blocks: make(map[link]int),
		throttles: make(map[string]int), storms: make(map[string]int)}
}

// fire counts a fault.
func (w *weather) fire(f Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fired[f]++
}

// befall counts a fault of a thing, and notes whose.
func (w *weather) befall(f Fault, whom ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fired[f]++
	w.episodes = append(w.episodes, fmt.Sprintf("%s %s %v", time.Since(w.began), f, whom))
}

// clear ends all bad weather for good.
func (w *weather) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calm = true
	clear(w.blocks)
	clear(w.throttles)
	clear(w.storms)
}

// isCalm says that nothing goes wrong any more.
func (w *weather) isCalm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calm
}

// block severs links until the returned function is called.
func (w *weather) block(links ...link) (heal func()) {
	return w.hold(w.blocks, links)
}

func (w *weather) throttle(prefix string) (heal func()) {
	return holdOne(w, w.throttles, prefix)
}

func (w *weather) stormOver(prefix string) (heal func()) {
	return holdOne(w, w.storms, prefix)
}

func (w *weather) hold(in map[link]int, links []link) func() {
	var heals []func()
	for _, l := range links {
		heals = append(heals, holdOne(w, in, l))
	}
	return func() {
		for _, heal := range heals {
			heal()
		}
	}
}

func holdOne[K comparable](w *weather, in map[K]int, key K) (heal func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	in[key]++
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if in[key]--; in[key] <= 0 {
			delete(in, key)
		}
	}
}

// blocked says whether nothing gets from one end to the other.
func (w *weather) blocked(from, to string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.blocks[link{from, to}] > 0 || w.blocks[link{anyone, to}] > 0 || w.blocks[link{from, anyone}] > 0
}

// fate is what happens to one call.
type fate struct {
	fault Fault
	delay time.Duration // of slow, and of a late effect
}

// lateTime is how late a request arrives at most.
const lateTime = 10 * time.Second

// odds of the faults of calls, each once in so many.
type odds struct {
	fault Fault
	once  int
	most  time.Duration
}

var (
	tableOdds = []odds{{refused, 60, 0}, {vanished, 90, 0}, {lostAnswer, 60, 0}, {late, 80, 6 * time.Second}, {slow, 40, 2 * time.Second},
		{ownEcho, 60, 0}}
	staleOdds  = []odds{{stale, 3, 0}}
	bucketOdds = []odds{{refused, 25, 0}, {vanished, 60, 0}, {lostAnswer, 25, 0}, {late, 40, time.Minute}, {slow, 15, 4 * time.Second},
		{ownEcho, 25, 0}}
	networkOdds = []odds{{refused, 60, 0}, {vanished, 80, 0}, {lostAnswer, 60, 0}, {slow, 30, 3 * time.Second}, {garbage, 80, 0}, {late, 80, lateTime}}
	streamOdds  = []odds{{cutStream, 60, 0}, {slow, 60, 2 * time.Second}}
)

// draw decides the fate of a call.
func (w *weather) draw(family Family, list []odds) fate {
	if !w.options.Has(family) || w.isCalm() {
		return fate{}
	}
	for _, o := range list {
		if w.dice.chance(o.once) {
			w.fire(o.fault)
			f := fate{fault: o.fault}
			if o.most > 0 {
				f.delay = w.dice.between(0, o.most)
			}
			return f
		}
	}
	return fate{}
}

// pressed says whether calls about a key are refused now.
func (w *weather) pressed(service, key string) (Fault, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list, fault := w.throttles, throttled
	if service == bucketName {
		list, fault = w.storms, storm
	}
	for prefix := range list {
		if strings.HasPrefix(key, prefix) {
			w.fired[fault]++
			return fault, true
		}
	}
	return fine, false
}
