package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// open checks that table, bucket and buffer belong together, and looks at what a
// predecessor left in the buffer.
func (g *Gateway) open(ctx context.Context) error {
	var err error
	if g.cluster, err = metadata.OpenCluster(ctx, g.table); err != nil {
		return fmt.Errorf("open %s: %w", g.table, err)
	}
	generation, err := g.cluster.Generation(ctx)
	if err != nil {
		return err
	}
	belongs := segments.ClaimStore
	if generation > 0 { // a gateway has started on this table, and claimed its bucket before
		belongs = segments.CheckStore
	}
	if err := belongs(ctx, g.notes, segments.ClusterID(g.cluster.ID)); err != nil {
		return err
	}
	if g.buffers != nil {
		if err := g.buffers.Claim(segments.ClusterID(g.cluster.ID)); err != nil {
			return err
		}
		if g.recovered, err = g.buffers.Scan(); err != nil {
			return fmt.Errorf("scan the buffer: %w", err)
		}
	}
	return g.members.inherit()
}

// recover finishes what predecessors on this data folder left: it uploads and
// commits what was acked as buffered, takes the partitions whose changes are only
// in a journal, and closes the predecessors. It runs beside the serving, and again
// whenever it could not finish.
func (g *Gateway) recover(ctx context.Context) error {
	pauses := metadata.DefaultBackOff()
	kept := make(map[metadata.GatewayID]bool)
	for {
		err := g.recoverOnce(ctx, kept)
		if err == nil {
			close(g.caughtUp)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		g.log.Warn("recovery is not finished; it is tried again", "error", err)
		if err := pause(ctx, pauses); err != nil {
			return err
		}
	}
}

// recoverOnce adds to kept the predecessors whose files must stay for another start.
func (g *Gateway) recoverOnce(ctx context.Context, kept map[metadata.GatewayID]bool) error {
	for len(g.recovered) > 0 {
		file := &g.recovered[0]
		switch err := g.recoverFile(ctx, file); {
		case lasting(err):
			kept[metadata.GatewayID(file.Gateway)] = true
			g.log.Error("what was acked as buffered cannot all be appended: the file stays, and the next start tries again",
				"gateway", file.Gateway, "segment", file.Number, "error", err)
		case errors.As(err, new(*uploaderClosed)):
			g.log.Error("what was acked as buffered comes too late: its gateway was closed when its disk had been away for too long. The file is set aside, it can be read with varve dump",
				"gateway", file.Gateway, "segment", file.Number, "file", file.Path())
			if err := file.SetAside(); err != nil {
				return err
			}
		case err != nil:
			return err
		}
		g.recovered = g.recovered[1:]
	}
	for len(g.predecessors) > 0 {
		id := g.predecessors[0]
		if err := g.members.seal(ctx, id); err != nil && !errors.Is(err, metadata.ErrNotFound) {
			return err
		}
		if !kept[id] { // else what it had appended must be known when the file comes again
			if err := g.closePredecessor(ctx, id); err != nil {
				return err
			}
		}
		g.predecessors = g.predecessors[1:]
	}
	return g.tidyBuffer()
}

// tidyBuffer removes the folders of ids that have ended, or died before they had a row.
func (g *Gateway) tidyBuffer() error {
	if g.buffers == nil {
		return nil
	}
	ids, err := g.buffers.Gateways()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if g.members.hasEnded(metadata.GatewayID(id)) {
			if err := g.buffers.RemoveGateway(id); err != nil {
				return err
			}
		}
	}
	return nil
}

// recoverFile uploads what a buffer file holds under its old name and has it judged,
// by its number alone.
func (g *Gateway) recoverFile(ctx context.Context, file *segments.RecoveredFile) error {
	if id := metadata.GatewayID(file.Gateway); !g.members.takesFrom(id) { // or its row is gone since
		return &uploaderClosed{id}
	}
	name := fmt.Sprintf("segment %d of %s", file.Number, file.Gateway)
	for _, damage := range file.Damage {
		g.log.Error("a buffer file is damaged: what was acked as buffered there is lost; the file is set aside", "buffer", name, "damage", damage.Error())
	}
	builder := segments.NewBuilder(segments.ClusterID(g.cluster.ID), file.Gateway, file.Number)
	for b, err := range file.All() {
		if err != nil {
			return fmt.Errorf("buffer of %s: %w", name, err)
		}
		if err := builder.Add(b.Span, b.Data, b.Info); err != nil {
			return fmt.Errorf("buffer of %s: %w", name, err)
		}
	}
	if builder.Batches() > 0 {
		object, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
		if err != nil {
			return fmt.Errorf("buffer of %s: %w", name, err)
		}
		directory, err := g.put(ctx, object)
		if err != nil {
			return err
		}
		if err := g.recommit(ctx, name, directory); err != nil {
			return err
		}
	}
	if len(file.Damage) > 0 {
		return file.SetAside()
	}
	return file.Remove()
}

// recommit has the batches of a predecessor's segment judged that were acked as
// buffered. The rest was never acked: its producers send it again. An error that is
// lasting says that a partition cannot be sequenced; the other ones have theirs.
func (g *Gateway) recommit(ctx context.Context, name string, d *segments.Directory) error {
	var references []*metadata.Reference
	for i := range d.Spans {
		ref := reference(d, &d.Spans[i], func(b *segments.BatchInfo) bool { return b.Ack == segments.AckBuffered })
		if len(ref.Batches) > 0 {
			ref.ByNumber = true
			references = append(references, ref)
		}
	}
	batches, repeated := 0, 0
	var broken error
	err := g.router.refer(ctx, references, nil, func(i int, v metadata.Verdict, err error) {
		switch {
		case lasting(err), errors.As(err, new(*uploaderClosed)):
			broken = err
		case err != nil:
			g.log.Error("what was acked as buffered cannot be appended: its topic was deleted", "buffer", name, "partition", references[i].Partition.String())
		case v.Status == metadata.Repeated:
			repeated += len(references[i].Batches)
		default:
			batches += len(references[i].Batches)
		}
	})
	if err != nil {
		return err
	}
	g.meters.recovered(batches)
	g.log.Info("recovered what was acked as buffered", "buffer", name, "appended", batches, "appended_before", repeated)
	return broken
}

// closePredecessor ends an id whose numbers are all settled. Its folder goes last: it
// is what tells the next start that the id was a predecessor.
func (g *Gateway) closePredecessor(ctx context.Context, id metadata.GatewayID) error {
	if g.buffers != nil {
		if err := g.buffers.SettleGateway(segments.GatewayID(id)); err != nil {
			return err
		}
	}
	if err := metadata.MarkClosed(ctx, g.table, id); err != nil && !errors.Is(err, metadata.ErrNotFound) { // closed by somebody else, and collected
		return err
	}
	if g.buffers != nil {
		if err := g.buffers.RemoveGateway(segments.GatewayID(id)); err != nil {
			return err
		}
	}
	return g.members.look(ctx)
}
