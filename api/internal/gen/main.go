// Command gen compiles api/varve/**/*.proto and runs the two protoc plugins that
// go.mod pins, so that nobody needs protoc. Run it by `go generate ./api`.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

var plugins = []string{
	"google.golang.org/protobuf/cmd/protoc-gen-go",
	"connectrpc.com/connect/v2/cmd/protoc-gen-connect-go",
}

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	public, err := filepath.Glob(filepath.Join(root, "varve/v1/*.proto"))
	if err != nil {
		return err
	}
	peers, err := filepath.Glob(filepath.Join(root, "varve/peer/v1/*.proto"))
	names := append(public, peers...)
	if err != nil || len(names) == 0 {
		return fmt.Errorf("no .proto files below %s (run it from the folder api): %w", root, err)
	}
	request := &pluginpb.CodeGeneratorRequest{Parameter: proto.String("paths=source_relative")}
	compiler := protocompile.Compiler{
		Resolver:       &protocompile.SourceResolver{ImportPaths: []string{root}},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	for i := range names {
		if names[i], err = filepath.Rel(root, names[i]); err != nil {
			return err
		}
	}
	files, err := compiler.Compile(context.Background(), names...)
	if err != nil {
		return err
	}
	for _, file := range files {
		request.FileToGenerate = append(request.FileToGenerate, file.Path())
		request.ProtoFile = append(request.ProtoFile, (*descriptorpb.FileDescriptorProto)(protoutil.ProtoFromFileDescriptor(file)))
	}
	for _, plugin := range plugins {
		if err := generate(root, plugin, request); err != nil {
			return fmt.Errorf("%s: %w", plugin, err)
		}
	}
	return nil
}

func generate(root, plugin string, request *pluginpb.CodeGeneratorRequest) error {
	input, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "tool", plugin)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(output, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return errors.New(response.GetError())
	}
	for _, file := range response.File {
		path := filepath.Join(root, file.GetName())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
