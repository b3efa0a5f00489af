package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/metadata"
)

// gatewayJSON is one line of gateways -o json.
type gatewayJSON struct {
	ClusterID   string `json:"cluster_id"`
	ID          string `json:"id"`
	Address     string `json:"address"`
	PeerAddress string `json:"peer_address"`
	Zone        string `json:"zone"`
	State       string `json:"state"`
	Version     string `json:"version"`
	Partitions  uint64 `json:"partitions"`
	Buffered    uint64 `json:"buffered_records"`
	Beat        uint64 `json:"beat"`
	Floor       uint64 `json:"floor"`
	Role        string `json:"role"`
}

func newGatewaysCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "gateways",
		Short: "List the cluster's gateways",
		Long: `Lists the gateways that the cluster's table knows, as of their last beats: where they are reached, by clients and by
each other, how many partitions they sequence, and how many records they acknowledged as buffered that are not
committed yet.

  live      serves
  draining  leaves in good order
  sealed    was silent for too long, and others took its partitions; it comes back under a new id
  closed    has left, with nothing unfinished

Of gateways that are sealed or closed the numbers are those of their last beat, which count no more: the table
shows - for them, -o json what was recorded. Their rows stay listed until there is garbage collection.

A beat is a count that rises while a gateway lives: ask twice to see it.`,
		Example: `  varve gateways
  varve gateways -o json --server http://gateway-2:7480`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			cluster, gateways, err := c.Gateways(cmd.Context())
			if err != nil {
				return err
			}
			table := newTable(a.stdout, "GATEWAY", "ADDRESS", "PEER ADDRESS", "ZONE", "ROLE", "STATE", "PARTITIONS", "BUFFERED", "BEAT", "VERSION")
			for _, g := range gateways {
				if !a.json() {
					table.row(g.ID, orDash(g.Address), orDash(g.PeerAddress), orDash(g.Zone), orDash(g.Role), g.State, whileServing(g, g.Partitions), whileServing(g, g.BufferedRecords), g.Beat, orDash(g.Version))
					continue
				}
				if err := printJSON(a.stdout, gatewayJSON{
					cluster, g.ID, g.Address, g.PeerAddress, g.Zone, g.State, g.Version, g.Partitions, g.BufferedRecords, g.Beat, g.Floor, g.Role,
				}); err != nil {
					return err
				}
			}
			return table.flushUnless(a.json())
		},
	}
}

// whileServing is a number of a gateway's last beat, which says nothing once it is gone.
func whileServing(g client.Gateway, n uint64) string {
	if g.State == string(metadata.GatewaySealed) || g.State == string(metadata.GatewayClosed) {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}
