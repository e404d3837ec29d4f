// A control plane for tests: go-control-plane's server, which serves what it is told on standard input, a line each:
//
//	set VERSION NAME=IP:PORT[,IP:PORT...] ...   a snapshot; `-IP:PORT` drains, `!` has no address
//
// Prints `port=N` once it listens, `set VERSION` for each line, and a line for each request and NACK it gets.
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Whoever asks gets the same.
type anybody struct{}

func (anybody) ID(*core.Node) string { return "" }

func assignment(name, list string) types.Resource {
	localities := &endpoint.LocalityLbEndpoints{
		Locality:            &core.Locality{Region: "eu", Zone: "eu-1"},
		LoadBalancingWeight: wrapperspb.UInt32(1),
	}
	for _, at := range strings.Split(list, ",") {
		if at == "" {
			continue
		}
		health := core.HealthStatus_HEALTHY
		if rest, ok := strings.CutPrefix(at, "-"); ok {
			at, health = rest, core.HealthStatus_DRAINING
		}
		lb := &endpoint.Endpoint{}
		if host, port, err := net.SplitHostPort(at); err == nil {
			number, _ := strconv.Atoi(port)
			lb.Address = &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
				Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(number)},
			}}}
		}
		labels, _ := structpb.NewStruct(map[string]any{"version": "v2"})
		localities.LbEndpoints = append(localities.LbEndpoints, &endpoint.LbEndpoint{
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: lb},
			HealthStatus:   health,
			Metadata:       &core.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.lb": labels}},
		})
	}
	return &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{localities}}
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func main() {
	// Without `ads`: with it, go-control-plane answers only those who name everything that it holds.
	snapshots := cache.NewSnapshotCache(false, anybody{}, nil)
	callbacks := server.CallbackFuncs{
		StreamRequestFunc: func(stream int64, r *discovery.DiscoveryRequest) error {
			say("sotw stream=%d version=%q nonce=%q node=%s names=%s error=%q", stream, r.VersionInfo, r.ResponseNonce, r.Node.GetId(), r.ResourceNames, r.ErrorDetail.GetMessage())
			return nil
		},
		StreamDeltaRequestFunc: func(stream int64, r *discovery.DeltaDiscoveryRequest) error {
			say("delta stream=%d held=%d nonce=%q node=%s names=%s less=%s error=%q", stream, len(r.InitialResourceVersions), r.ResponseNonce, r.Node.GetId(), r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe, r.ErrorDetail.GetMessage())
			return nil
		},
	}
	grpcServer := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, server.NewServer(context.Background(), snapshots, callbacks))
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	go grpcServer.Serve(listener)
	say("port=%d", listener.Addr().(*net.TCPAddr).Port)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		var all []types.Resource
		for _, word := range words[2:] {
			name, list, _ := strings.Cut(word, "=")
			all = append(all, assignment(name, list))
		}
		snapshot, err := cache.NewSnapshot(words[1], map[resource.Type][]types.Resource{resource.EndpointType: all})
		if err == nil {
			err = snapshots.SetSnapshot(context.Background(), "", snapshot)
		}
		if err != nil {
			panic(err)
		}
		say("set %s", words[1])
	}
}
