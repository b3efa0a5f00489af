package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/varvelog/varve/cmd/varve/e2e/chaosproxy"
)

// disk is a data folder. It moves between gateways.
type disk struct {
	folder string
	// lost: what was acked as buffered on it is gone.
	lost bool
}

// state of a gateway, as the supervisor has it.
type state uint8

const (
	down     state = iota
	starting       // launched
	serving        // it said so
	paused         // SIGSTOP
	draining       // SIGTERM
)

// post is where a gateway runs: an address, its ways to bucket and table, and a disk. One process after the
// other runs there.
type post struct {
	number        int
	address       string
	bucket, table *chaosproxy.Proxy
	args, env     []string
	// merges: it is a --role compactor, which takes no appends.
	merges bool

	// These belong to the supervisor.
	process *process
	state   state
	// busy: something was begun with it that is not over.
	busy bool

	mu      sync.Mutex
	serves  bool    // as far as clients can know
	history []*disk // the last one is in use
}

func (p *post) url() string { return "http://" + p.address }

// disks says how many there were so far.
func (p *post) disks() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.history)
}

// since lists the disks from the one that was in use when disks said n.
func (p *post) since(n int) []*disk {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.history[max(0, n-1):])
}

func (p *post) disk() *disk {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.history[len(p.history)-1]
}

// insert has the next process use another disk.
func (p *post) insert(d *disk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.history = append(p.history, d)
}

func (p *post) become(s state) {
	p.state = s
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serves = s == serving
}

// fleet is all posts, on one bucket and one table.
type fleet struct {
	posts  []*post
	folder string // of the disks
	logs   string // folder for what the gateways say
	bucket string
	disks  []*disk
}

// newFleet has so many posts, with proxies in between that pass everything so far. So many more are for processes that only
// merge; one in three of the others leaves that to them.
func newFleet(t *testing.T, r *rand.Rand, posts, compactors int, options ...string) *fleet {
	t.Helper()
	stack := shared.start(t)
	f := &fleet{folder: t.TempDir(), logs: t.ArtifactDir()}
	bucket, table := stack.newBucket(t), stack.newTable(t)
	f.bucket = bucket
	proxy := func(backend string, protocol chaosproxy.Protocol) *chaosproxy.Proxy {
		p, err := chaosproxy.New(backend, protocol, r.Uint64())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	for i := range posts + compactors {
		p := &post{
			number: i, merges: i >= posts, address: freeAddress(t), env: stack.env(),
			bucket: proxy(stack.minio.URL(), chaosproxy.S3), table: proxy(stack.dynalite.URL(), chaosproxy.DynamoDB),
		}
		// Both clients for buckets there are, by turns.
		segments := "minio://" + strings.TrimPrefix(p.bucket.URL, "http://") + "/" + bucket + "/logs?tls=false"
		if i%2 == 1 {
			segments = "s3://" + bucket + "/logs?region=" + region + "&endpoint=" + url.QueryEscape(p.bucket.URL)
		}
		p.args = append([]string{"--segments", segments, "--metadata", tableURL(p.table.URL, table)}, options...)
		switch {
		case p.merges:
			p.args = append(p.args, "--role", "compactor")
		case i%3 == 2 && compactors > 0:
			p.args = append(p.args, "--role", "gateway")
		}
		p.insert(f.newDisk())
		f.posts = append(f.posts, p)
	}
	return f
}

func (f *fleet) newDisk() *disk {
	d := &disk{folder: filepath.Join(f.folder, fmt.Sprintf("disk-%d", len(f.disks)))}
	f.disks = append(f.disks, d)
	return d
}

// user is the post that has a disk, or nil.
func (f *fleet) user(d *disk) *post {
	for _, p := range f.posts {
		if p.disk() == d {
			return p
		}
	}
	return nil
}

// takers are the posts that take appends.
func (f *fleet) takers() []*post {
	return slices.DeleteFunc(slices.Clone(f.posts), func(p *post) bool { return p.merges })
}

// urls are the addresses of all posts that take appends, beginning with one.
func (f *fleet) urls(first int) (urls []string) {
	takers := f.takers()
	for i := range takers {
		urls = append(urls, takers[(first+i)%len(takers)].url())
	}
	return urls
}

// pick chooses a post that takes appends and whose gateway serves, as far as clients can know; any if none does.
func (f *fleet) pick(r *rand.Rand) *post { return pickOf(f.takers(), r) }

// reader chooses one that may only merge, too: it answers reads like all others.
func (f *fleet) reader(r *rand.Rand) *post { return pickOf(f.posts, r) }

func pickOf(posts []*post, r *rand.Rand) *post {
	start := r.IntN(len(posts))
	for i := range posts {
		p := posts[(start+i)%len(posts)]
		p.mu.Lock()
		serves := p.serves
		p.mu.Unlock()
		if serves {
			return p
		}
	}
	return posts[start]
}

// launch starts a process at a post.
func (f *fleet) launch(t *testing.T, p *post) {
	t.Helper()
	where := place{data: p.disk().folder, args: p.args, env: p.env, log: filepath.Join(f.logs, fmt.Sprintf("gateway-%d.log", p.number))}
	p.process = launch(t, where, p.address)
	p.become(starting)
}

// inState counts posts.
func (f *fleet) inState(states ...state) (n int) {
	for _, p := range f.posts {
		if slices.Contains(states, p.state) {
			n++
		}
	}
	return n
}

// setFaults has the proxies be faulty, or stop that.
func (f *fleet) setFaults(on bool) {
	for _, p := range f.posts {
		var bucket, table chaosproxy.Rates
		if on {
			bucket, table = chaosproxy.DefaultRates(chaosproxy.S3), chaosproxy.DefaultRates(chaosproxy.DynamoDB)
		}
		p.bucket.SetRates(bucket)
		p.table.SetRates(table)
	}
}

// faults adds up what the proxies did.
func (f *fleet) faults() (requests map[chaosproxy.Protocol]int, counts map[chaosproxy.Protocol]chaosproxy.Counts) {
	requests, counts = make(map[chaosproxy.Protocol]int), make(map[chaosproxy.Protocol]chaosproxy.Counts)
	for _, p := range f.posts {
		for protocol, proxy := range map[chaosproxy.Protocol]*chaosproxy.Proxy{chaosproxy.S3: p.bucket, chaosproxy.DynamoDB: p.table} {
			n, c := proxy.Counts()
			sum := counts[protocol]
			sum.Add(c)
			requests[protocol], counts[protocol] = requests[protocol]+n, sum
		}
	}
	return requests, counts
}

// clean says that nothing is left in a disk's buffer.
func clean(t *testing.T, d *disk) bool {
	t.Helper()
	if _, err := os.Stat(filepath.Join(d.folder, "buffer")); os.IsNotExist(err) {
		return true // never used
	}
	return len(bufferFiles(t, place{data: d.folder})) == 0
}
