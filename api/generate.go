// Package api holds the .proto files of Varve's API and what is generated from them.
package api

//go:generate go run ./internal/gen
