// Package client is the Go client of Varve, a log on object storage.
//
//	                    ┌ Append ───── one batch, with conditions, one answer
//	Config ─> Client ───┼ Producer ─── records → batches → many requests in flight → acks
//	                    ├ Consumer ─── streams → batches → records, in one of two orders
//	                    ├ ListOffsets  offsets by time
//	                    └ topics, segments, gateways
//
// A Client holds connections to one cluster. It stays with one of its servers and goes on with
// another when that one fails. Everything made from it may be used by many goroutines at once, except a Consumer's iterators, which belong to one loop each.
//
//	c, err := client.New(client.Config{Servers: []string{"http://127.0.0.1:7480"}})
//	p, err := c.NewProducer(client.ProducerConfig{Topic: "quakes"})
//	err = p.Produce(ctx, client.Record{Key: id, Value: body, Timestamp: when}, nil)
//	err = p.Close(ctx) // sends what is left and waits for it
//
//	k, err := c.NewConsumer(client.ConsumerConfig{Topic: "quakes", Start: client.AtTime(since)})
//	for rec, err := range k.Records(ctx) { … }
//
// What a Producer promises, with its defaults: a record whose ack arrived without an error is in the
// bucket, once, and records of one partition lie in the order in which they were given. A record whose
// ack carries an error with UnknownOutcome may be in the log or not, whole and once at most; any other
// error means that it is not there.
//
// What a Consumer promises: each record between its start and its end once, each partition in offset
// order, across any number of reconnections. Data that is damaged or gone ends the loop with an error
// (ErrDataLoss, ErrOutOfRange); nothing is ever skipped in silence.
//
// Times have millisecond precision: that is what record batches carry.
package client
