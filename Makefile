# make alone lists what there is to make.

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 10s
BENCH    ?= .
QUICK    ?=
ONLY     ?=
SOAK     ?= 1h
SEEDS    ?= 200
FROM     ?= 1
CHAOS    ?= 10m
IMAGE    ?= varve:$(VERSION)
CA_FILE  ?= $(firstword $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem))

# Two packages at a time: some run servers, and -race takes memory.
GOTEST := go test -p 2 -timeout 20m

# These start real servers or the real binary.
WITH_SERVERS := /(localstack|segments/s3store|segments/miniostore|metadata/dynamotable|deploy/iam|cmd|e2e)(/|$$)
# Here nothing of ours runs at once, or it runs in the binary: -race finds nothing.
WITHOUT_RACE := /(api|cmd|e2e|segments/batch)(/|$$)

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help build image run test check fmt-check vet lint generate generate-check manifests \
        unit race e2e sim seeded seeded-some chaos fuzz bench bench-go bench-peers soak fetch demo scale-demo localstack localstack-down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/varve
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/varve ./cmd/varve

image: ## build the container image IMAGE (varve:VERSION) with docker, podman or buildah
	@test -n '$(CA_FILE)' || { echo 'no CA certificates found here: name a file of them with CA_FILE=…'; exit 1; }
	@rm -rf bin/image && mkdir -p bin/image/data
	CGO_ENABLED=0 GOOS=linux go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/image/varve ./cmd/varve
	@cp '$(CA_FILE)' bin/image/ca-certificates.crt && chmod 644 bin/image/ca-certificates.crt
	@deploy/image.sh '$(IMAGE)' '$(VERSION)' bin/image

run: build ## build, and serve from ./varve-data on 127.0.0.1:7480
	bin/varve serve

test: check race e2e seeded-some ## everything: check, and all tests, with the servers they need

check: fmt-check vet lint generate-check manifests ## format, vet, lint, generated code is current, manifests are valid

fmt-check:
	@files=$$(gofmt -l .) || exit 1; \
	if [ -n "$$files" ]; then echo "not formatted (run gofmt -w):"; echo "$$files"; exit 1; fi

vet:
	go vet ./...

lint:
	go tool staticcheck ./...

generate: ## generate the code in api/ from its .proto files
	go generate ./api

# Generates into a folder of its own and compares, so that a checkout with changes
# is judged by what is in it and nothing in it is written to.
generate-check:
	@rm -rf bin/_api && mkdir -p bin/_api
	@cd api && find varve -name '*.proto' | tar -cf - -T - | tar -xf - -C ../bin/_api
	@cd bin/_api && go run ../../api/internal/gen
	@diff -ru api/varve bin/_api/varve || { echo 'generated code is not current: run make generate'; exit 1; }
	@rm -rf bin/_api

# A module of its own: whoever imports the client gets nothing of Kubernetes. Its tests read files
# outside of it, of which the cache of test results knows nothing.
manifests: ## the Kubernetes manifests, strictly against its API
	go -C deploy/kubernetes/check vet ./...
	go -C deploy/kubernetes/check test -count=1 ./...

unit: ## the tests that need no server, without -race: quick
	$(GOTEST) $$(go list ./... | grep -vE '$(WITH_SERVERS)')

race: fetch ## all tests where -race pays, with -race
	$(GOTEST) -race $$(go list ./... | grep -vE '$(WITHOUT_RACE)')

e2e: fetch ## all other tests, among them those of the real binary
	$(GOTEST) $$(go list ./... | grep -E '$(WITHOUT_RACE)')

sim: ## SEEDS (200) simulated clusters from FROM (1) on, with their account
	GOGC=800 go test ./sim -count 1 -timeout 12h -run TestSeeds -seeds $(SEEDS) -from $(FROM) -v

seeded: ## plant each known bug, and see that the simulated cluster or a test finds it
	GOGC=400 go test -tags seeded ./sim -count 1 -timeout 2h -run TestSeededBugs -v

# Those that show at once: the checks of the simulated cluster must still be able to fail.
seeded-some:
	GOGC=400 go test -tags seeded ./sim -count 1 -timeout 8m -run TestSeededBugs -bugs forget-producers,release-early,older-view,trim-early

chaos: build fetch ## CHAOS (10m) of several gateways that are killed, paused, moved and cut off
	go test ./cmd/varve/e2e -count 1 -timeout 2h -run TestChaos -chaos $(CHAOS) -v

fuzz: ## every fuzz test, for FUZZTIME (10s) each
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort | \
	while IFS=: read -r file func; do \
		echo "$${file%/*} $${func#func }"; \
		go test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) "$${file%/*}" </dev/null || exit 1; \
	done

# QUICK=1: a little of everything, to see that it works; ONLY=files,small: some parts. Figures of a full run go to
# bench/results, whose files are committed when the docs quote them.
bench: build fetch ## measure all that is promised, on files and on MinIO: a table, and bench/results
	go run ./localstack with bin/varve bench all --commit "$$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
	  $(if $(QUICK),--quick --results bin/bench-results,--results bench/results) $(if $(ONLY),--only $(ONLY))

bench-go: ## the Go benchmarks, for profiles
	go test -p 1 -run '^$$' -bench '$(BENCH)' -benchmem ./...

# A module of its own: nothing of the other servers enters ours. Redis and PostgreSQL are measured where they are installed.
bench-peers: build fetch ## the same work for Varve and other servers, with what an ack of each means
	go build -C bench/peers -trimpath -o ../../bin/peers .
	@mkdir -p bench/results
	go run ./localstack with bin/peers --commit "$$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" --results bench/results

soak: build ## SOAK (1h) of steady load: memory, goroutines, files and rows must not grow
	bin/varve bench soak --duration $(SOAK)

fetch: ## get MinIO and dynalite into the user's cache folder
	go run ./localstack fetch

demo: build ## the tour of the README, on real data
	go run ./localstack/demo

scale-demo: build fetch ## 1, 4, 1 and 3 gateways under load, with an account of what clients noticed
	go run ./localstack/scaledemo

localstack: ## start MinIO and a DynamoDB server here, print how to use them
	@go run ./localstack up

localstack-down: ## stop them; the data stays
	@go run ./localstack down

clean: ## remove bin/
	rm -rf bin
