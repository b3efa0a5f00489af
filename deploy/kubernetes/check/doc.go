// Package check has the tests of the Kubernetes manifests beside it: each decodes
// strictly as what it says it is, and names only what is there.
//
// It is a module of its own, so that nobody who imports Varve's client gets Kubernetes'
// dependencies with it.
package check
