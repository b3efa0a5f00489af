//go:build seeded

package sim

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/internal/seeded"
)

var (
	bugs     = flag.String("bugs", "", "plant these alone, separated by commas; empty: all of them")
	bugSeeds = flag.Int("bugseeds", 48, "in how many seeds a bug must show, should it not in its own")
	hunt     = flag.Bool("hunt", false, "go over -seeds seeds from -from on with each bug, and tell all that they show")
)

// caught says how a bug is found: in the simulated cluster, by a test elsewhere, or both.
type caught struct {
	bug    seeded.Bug
	breaks string
	// seeds show it soon, mostly; the scheduler makes every run a little different. What they show
	// is one of anomalies, which are those that the bug is expected to lead to.
	seeds     []uint64
	anomalies []string
	// pkg has a test that fails.
	pkg, test string
}

var catches = []caught{
	{bug: seeded.SkipEpochCheck, breaks: "what was decided before a partition left and came back is folded twice", pkg: "metadata", test: "TestFoldSkipsOtherEpochs"},
	{bug: seeded.DeleteSeal, breaks: "a paused owner commits past the hole", seeds: []uint64{1, 3, 17, 18}, anomalies: []string{BrokenTable, LostWrite, InconsistentOffset},
		pkg: "metadata", test: "TestHoleAfterTrimming"},
	{bug: seeded.UnsettledDuplicate, breaks: "an owner that is fenced and does not know it refuses by what was true", pkg: "gateway", test: "TestAnswersOfAPausedOwner"},
	{bug: seeded.AckBeforeCommit, breaks: "an ack of what never was in the journal", seeds: []uint64{7, 21, 4, 5}, anomalies: []string{LostWrite}},
	{bug: seeded.ReuseNumber, breaks: "two segments have one name", seeds: []uint64{1, 2, 3, 4}, anomalies: []string{LostWrite}},
	{bug: seeded.MissingIsEmpty, breaks: "readers are led past records whose object is gone", pkg: "gateway", test: "TestMissingObject"},
	{bug: seeded.ForgetUploader, breaks: "after a takeover references are judged again, or wait for ever", seeds: []uint64{1, 2, 3, 4}, anomalies: []string{NotLive, Duplicate}},
	{bug: seeded.ForgetProducers, breaks: "after a takeover a producer's repeated batch is appended again", seeds: []uint64{4, 12, 10, 1}, anomalies: []string{Duplicate}},
	{bug: seeded.ForgetFence, breaks: "after a takeover the token is another one", seeds: []uint64{10, 13, 14, 17}, anomalies: []string{Unlinearizable, FencedWrite},
		pkg: "metadata", test: "TestFenceAcrossTakeover"},
	{bug: seeded.AdoptAnyPage, breaks: "the index names a page with fewer entries than it should have", seeds: []uint64{3, 9, 11}, anomalies: []string{BrokenTable, LostWrite},
		pkg: "metadata", test: "TestForeignPage"},
	{bug: seeded.SkipFolderSync, breaks: "after a power cut a buffer file has no name", seeds: []uint64{3, 4, 7, 8}, anomalies: []string{LostWrite},
		pkg: "segments", test: "TestBufferSurvivesCrashes"},
	{bug: seeded.RetrySync, breaks: "what the disk had dropped counts as synced", seeds: []uint64{11, 26, 39, 62}, anomalies: []string{LostWrite},
		pkg: "segments", test: "TestFailedSyncFailsAllWaiters"},
	{bug: seeded.ClockDecides, breaks: "after an outage of writes the gateways seal each other", pkg: "gateway", test: "TestTableOutage"},
	{bug: seeded.SkipFold, breaks: "what a dead gateway had committed since its checkpoint is gone", seeds: []uint64{1, 2, 3, 4}, anomalies: []string{LostWrite, InconsistentOffset}},
	{bug: seeded.ReleaseEarly, breaks: "what is decided while the release is written is in no fold", seeds: []uint64{12, 13, 14, 15}, anomalies: []string{LostWrite, InconsistentOffset}},
	{bug: seeded.AcceptClosedUploader, breaks: "a late reference is judged again, its uploader being forgotten", pkg: "gateway", test: "TestLateReferenceOfAClosedUploader"},
	{bug: seeded.StaleConfirm, breaks: "a linearizable read by who has been fenced", pkg: "gateway", test: "TestReadsOfAPausedOwner"},
	{bug: seeded.OlderView, breaks: "readers see the end fall", seeds: []uint64{2, 3, 7, 8}, anomalies: []string{NonmonotonicPoll, FallenWatermark, StaleRead}},
	{bug: seeded.IgnoreChain, breaks: "an uploader's segments are judged in the order in which they come", seeds: []uint64{1, 2, 3, 6}, anomalies: []string{LostWrite, OrderBroken, NonmonotonicSend},
		pkg: "metadata", test: "TestLateReference"},
	{bug: seeded.TrimEarly, breaks: "entries are removed that partitions of other takers rest on", seeds: []uint64{1, 2, 3, 4}, anomalies: []string{LostWrite, BrokenTable, InconsistentOffset}},
	{bug: seeded.LatePage, breaks: "a paused owner's page replaces its successor's", pkg: "metadata", test: "TestPausedOwnersLatePage"},
	{bug: seeded.ForgetDoubt, breaks: "pages that a lease row may name are overwritten", pkg: "metadata", test: "TestCheckpointInDoubt"},
	{bug: seeded.JudgeAfterRelease, breaks: "two gateways judge one partition", pkg: "gateway", test: "TestNothingIsJudgedAfterAReleaseInDoubt"},
	{bug: seeded.SkipRefresh, breaks: "a new owner judges again what the old one had forgotten", pkg: "gateway", test: "TestTakerKnowsOfClosings"},
	{bug: seeded.RecoverAgain, breaks: "what had landed before a crash is appended again", seeds: []uint64{1, 3, 6, 7}, anomalies: []string{Duplicate},
		pkg: "metadata", test: "TestSkippedNumberInRecovery"},
	{bug: seeded.ReadOnce, breaks: "a reader of the table misses what was trimmed under it", pkg: "metadata", test: "TestReadBesideTrim"},
	{bug: seeded.StaleJournal, breaks: "a reader of the table is shown what was there before it asked", pkg: "metadata", test: "TestSharedJournalAtOnce"},
	{bug: seeded.TrimRowsFirst, breaks: "a trim that is cut short leaves a hole", seeds: []uint64{13, 15, 18, 20}, anomalies: []string{BrokenTable, NotLive},
		pkg: "metadata", test: "TestTrimCutShort"},
	{bug: seeded.IgnoreNonce, breaks: "a seal is taken for one's own entry, whose answer was lost", pkg: "metadata", test: "TestAnswerFromAnUnsettledPut"},
	{bug: seeded.RefusalInMemory, breaks: "after a takeover refused references are judged again, and their successors wait for ever", seeds: []uint64{1, 2, 3, 4}, anomalies: []string{NotLive, AbortedRead}},
	{bug: seeded.PublishBeforeCommit, breaks: "readers see what may never be", seeds: []uint64{1, 5, 13, 15}, anomalies: []string{PrecommittedRead, InconsistentOffset, NonmonotonicPoll, FallenWatermark},
		pkg: "gateway", test: "TestReadersSeeNothingUncommitted"},
	{bug: seeded.CollectStaleView, breaks: "what only a journal names is deleted", pkg: "compactor", test: "TestStaleView"},
	{bug: seeded.CollectAboveFloor, breaks: "an upload that is not committed yet is deleted", pkg: "compactor", test: "TestUnsettledStays"},
	{bug: seeded.ForgetClosedEarly, breaks: "a late reference names what was deleted", pkg: "compactor", test: "TestClosedUploadersLateReference"},
	{bug: seeded.SwapAnyway, breaks: "a swap that comes late puts back what another one replaced", pkg: "metadata", test: "TestSwapOfWhatMoved"},
	{bug: seeded.RemovedIsEmpty, breaks: "who still has a deleted topic's id reads the next one of its name as empty", seeds: []uint64{51248, 51065, 51375, 51315}, anomalies: []string{LostWrite},
		pkg: "metadata", test: "TestReadRemoved"},
}

func planted(bug seeded.Bug) bool {
	return *bugs == "" || slices.Contains(strings.Split(*bugs, ","), string(bug))
}

// TestSeededBugs plants one bug after the other and sees that it is found, and by what. It prints
// the table of docs/reliability.md.
func TestSeededBugs(t *testing.T) {
	defer seeded.Plant("")
	for _, bug := range seeded.All {
		if !slices.ContainsFunc(catches, func(c caught) bool { return c.bug == bug }) {
			t.Errorf("nothing is said to find %s", bug)
		}
	}
	binaries, folder := make(map[string]string), t.TempDir()
	table := []string{"| bug | what it breaks | found by | anomaly |", "|---|---|---|---|"}
	for _, c := range catches {
		if !planted(c.bug) {
			continue
		}
		t.Run(string(c.bug), func(t *testing.T) {
			began := time.Now()
			var by []string
			anomalies := "the test fails"
			if len(c.seeds) > 0 {
				var seed uint64
				seed, anomalies = c.inSimulation(t)
				by = append(by, fmt.Sprintf("seed %d", seed))
			}
			if c.test != "" {
				c.elsewhere(t, folder, binaries)
				by = append(by, fmt.Sprintf("`%s` in %s", c.test, c.pkg))
			}
			table = append(table, fmt.Sprintf("| `%s` | %s | %s | %s |", c.bug, c.breaks, strings.Join(by, ", "), anomalies))
			t.Logf("found after %s", time.Since(began).Round(time.Millisecond))
		})
	}
	t.Logf("\n%s", strings.Join(table, "\n"))
}

// inSimulation runs seeds until one shows what the bug is expected to lead to, and says which and what.
func (c caught) inSimulation(t *testing.T) (uint64, string) {
	t.Helper()
	// Its own seeds twice, then whichever.
	list := slices.Concat(c.seeds, c.seeds)
	for seed := uint64(1); seed <= uint64(*bugSeeds); seed++ {
		list = append(list, seed)
	}
	for some := range slices.Chunk(list, atOnce) {
		seeded.Plant(c.bug)
		results := runSome(t, some)
		seeded.Plant("")
		for _, r := range results {
			i := slices.IndexFunc(r.Anomalies, func(a Anomaly) bool { return slices.Contains(c.anomalies, a.Name) })
			if i < 0 {
				continue
			}
			t.Logf("seed %d: %s: %.300s", r.Options.Seed, r.Anomalies[i].Name, r.Anomalies[i].What)
			for _, clean := range runSome(t, []uint64{r.Options.Seed}) {
				if len(clean.Anomalies) > 0 {
					t.Errorf("seed %d shows %v without the bug, too", r.Options.Seed, clean.Anomalies[0])
				}
			}
			return r.Options.Seed, strings.Join(names(r, c.anomalies), ", ")
		}
	}
	t.Errorf("not found in %d seeds", len(list))
	return 0, "none"
}

// names lists which of the expected anomalies a run shows.
func names(r *Result, expected []string) []string {
	var list []string
	for _, name := range expected {
		if slices.ContainsFunc(r.Anomalies, func(a Anomaly) bool { return a.Name == name }) {
			list = append(list, name)
		}
	}
	return list
}

// elsewhere sees that the test fails with the bug, and without it does not. Test binaries are kept in a folder.
func (c caught) elsewhere(t *testing.T, kept string, binaries map[string]string) {
	t.Helper()
	folder, err := filepath.Abs(filepath.Join("..", c.pkg))
	if err != nil {
		t.Fatal(err)
	}
	if binaries[c.pkg] == "" {
		binary := filepath.Join(kept, c.pkg+".test")
		build := exec.CommandContext(t.Context(), "go", "test", "-tags", "seeded", "-c", "-o", binary, ".")
		build.Dir = folder
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		binaries[c.pkg] = binary
	}
	run := func(bug seeded.Bug) (string, error) {
		test := exec.CommandContext(t.Context(), binaries[c.pkg], "-test.run", "^"+c.test+"$", "-test.v", "-test.timeout", "2m")
		if c.pkg == "segments" {
			test.Args = append(test.Args, "-rapid.nofailfile")
		}
		test.Dir, test.Env = folder, append(os.Environ(), seeded.Variable+"="+string(bug))
		out, err := test.CombinedOutput()
		return string(out), err
	}
	out, err := run(c.bug)
	switch {
	case err == nil:
		t.Errorf("%s does not find it", c.test)
	case strings.Contains(out, "panic: test timed out"):
		t.Errorf("%s does not end", c.test)
	case !strings.Contains(out, "=== RUN   "+c.test+"\n") || !strings.Contains(out, "--- FAIL: "+c.test) && !strings.Contains(out, "panic: "):
		t.Errorf("%s did not fail, it did not run: %v\n%s", c.test, err, out)
	}
	if out, err := run(""); err != nil || !strings.Contains(out, "--- PASS: "+c.test) {
		t.Errorf("%s fails without it, too: %v\n%s", c.test, err, out)
	}
}

// TestHunt tells all that bugs show: where the seeds of catches come from.
func TestHunt(t *testing.T) {
	if !*hunt {
		t.Skip("a tool: -hunt")
	}
	defer seeded.Plant("")
	for _, bug := range seeded.All {
		if !planted(bug) {
			continue
		}
		seeded.Plant(bug)
		for seed := *from; seed < *from+uint64(*seeds); seed += atOnce {
			for _, r := range runSome(t, []uint64{seed, seed + 1, seed + 2, seed + 3}) {
				counts := make(map[string]int)
				for _, a := range r.Anomalies {
					counts[a.Name]++
				}
				if len(counts) > 0 {
					t.Logf("%s in seed %d: %v", bug, r.Options.Seed, counts)
				}
			}
		}
	}
}

// atOnce is how many seeds run at a time.
const atOnce = 4

func runSome(t *testing.T, seeds []uint64) []*Result {
	results := make([]*Result, len(seeds))
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() {
			synctest.Test(t, func(*testing.T) { results[i] = Run(OptionsOf(seeds[i]), nil) })
			results[i].Decide(modelTime)
		})
	}
	all.Wait()
	return results
}
