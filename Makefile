# Every target is thin: the work is in Go and in .ci/. `make help` lists them.
SHELL      := /bin/bash
PORT       ?= 7071
DATA_DIR   ?= .data
# Where the package is staged and the commands are built.
DIST       ?= dist
BIN        ?= bin
VERSION    := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BUILD      := CGO_ENABLED=0 go build -trimpath
LDFLAGS    := -s -w -X main.version=$(VERSION)
# Pinned tools. They are built on first use and cached by Go.
GOFUMPT     := go run mvdan.cc/gofumpt@v0.12.0
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

## Run

run: export PORT := $(PORT)
run: export DATA_DIR := $(DATA_DIR)
run: stage ## run everything on this machine: PORT=7071 DATA_DIR=.data REDIS_URL=
	@mkdir -p '$(BIN)' && $(BUILD) -o '$(BIN)/localhost' ./handler/cmd/localhost
	@if [ -f local.settings.json ]; then cp local.settings.json '$(DIST)/'; fi
	@exec '$(BIN)/localhost' --package '$(DIST)'

stage: ## build the deployment package's folder, dist/
	@rm -rf '$(DIST)' && mkdir -p '$(DIST)'
	@$(BUILD) -ldflags '$(LDFLAGS)' -o '$(DIST)/handler' ./handler
	@cp -R host.json functions/* '$(DIST)/'

demo: stage ## 1,000 users beat, 300 fall silent; checks every promise: KILL=1 ALL=1
	@mkdir -p '$(BIN)' && $(BUILD) -o '$(BIN)/localhost' ./handler/cmd/localhost && $(BUILD) -o '$(BIN)/demo' ./handler/cmd/demo
	@'$(BIN)/demo' -host '$(BIN)/localhost' -package '$(DIST)' $(if $(KILL),-kill) $(if $(ALL),-all) $(if $(REDIS),-redis '$(REDIS)') $(if $(NOTIFICATIONS),-notifications '$(NOTIFICATIONS)')

quickstart: ## clone to first offline event in seconds, in a new clone: COLD=1 empties Go's caches
	@.ci/quickstart --clone $(if $(COLD),--cold)

clean: ## remove what was built; the data stays
	@rm -rf '$(DIST)' '$(BIN)'

## Test

setup: ## install what the tests need and this machine lacks
	@.ci/setup

test: setup ## all tests, with the race detector, in random order
	@CGO_ENABLED=1 go test -race -shuffle=on ./...

race: setup ## tests again and again, to find races and flakes: PKG=./handler/... COUNT=5
	@CGO_ENABLED=1 go test -race -shuffle=on -count=$(or $(COUNT),5) -timeout 60m $(or $(PKG),./handler/...)

model: setup ## random steps against a model of the rules, on a real Redis: STEPS=1000000
	@go test ./handler/redisstore -run '^TestModel$$' -model.steps=$(or $(STEPS),1000000) -timeout 30m -v

servers: setup ## state tests and demo on each server that users have, Redis 6.2 to Valkey 9: ONLY=redis-6.2.5 TESTS=only
	@.ci/servers $(ONLY)

fuzz: ## every fuzz target for a while: FUZZTIME=10s
	@.ci/fuzz $(or $(FUZZTIME),10s)

fmt: ## check the format of the Go code; FIX=1 mends it
	@out=$$($(GOFUMPT) $(if $(FIX),-w,-l) handler infra) && if [ -n "$$out" ]; then printf 'not formatted, see make fmt FIX=1:\n%s\n' "$$out"; exit 1; fi

lint: ## go vet and staticcheck
	@go vet ./... && $(STATICCHECK) ./... && cd handler/cmd/peers && go vet ./...

## Measure

bench: setup stage ## one table, ratios first, of what is promised of speed and size: QUICK=1 ONLY=A,B STRICT=1; ONLY=P beside peers
	@mkdir -p '$(BIN)' && $(BUILD) -o '$(BIN)/bench' ./handler/cmd/bench
	@if [[ ",$(ONLY)," = *,[Pp],* ]]; then bin=$$(cd '$(BIN)' && pwd) && cd handler/cmd/peers && $(BUILD) -o "$$bin/peers" .; fi
	@'$(BIN)/bench' -handler '$(DIST)/handler' -peers '$(BIN)/peers' $(if $(QUICK),-quick) $(if $(ONLY),-only '$(ONLY)') $(if $(STRICT),-strict)

bench-start: stage ## handler start to first answered request, 100 starts; fails over 15 ms at p50
	@mkdir -p '$(BIN)' && $(BUILD) -o '$(BIN)/bench' ./handler/cmd/bench && '$(BIN)/bench' -handler '$(DIST)/handler' -only E -starts 100 -strict

loadtest: stage ## 10,000 users, 35,000 invocations, report in loadtest.html: PACE=published PROCESSES=200 NAIVE=1
	@mkdir -p '$(BIN)' && $(BUILD) -o '$(BIN)/localhost' ./handler/cmd/localhost && $(BUILD) -o '$(BIN)/loadtest' ./handler/cmd/loadtest
	@'$(BIN)/loadtest' $(if $(PACE),-pace '$(PACE)') $(if $(PROCESSES),-processes '$(PROCESSES)') $(if $(NAIVE),-naive)

bench-azure: setup ## deadline to Service Bus, relay rate, Cosmos cost, on the stand-ins of the tests: BENCH=Relay IDLE=10m
	@set -o pipefail; go test ./handler/azuretest -run '^$$' -bench '$(or $(BENCH),.)' -benchtime 1x -timeout 60m -args -idle $(or $(IDLE),0s) \
		| grep --line-buffered -E ' bar |^(ok|FAIL|panic)|_test\.go:[0-9]+:'

## Package and publish

# Where the checker of the templates is, if there is one; without it the Go tests check them.
INFRA_CHECK ?= infra-check

package: ## make bin/userconnectivity.zip, the package for Azure
	@GOOS=linux GOARCH=amd64 $(MAKE) --no-print-directory stage
	@mkdir -p '$(BIN)' && go run ./handler/cmd/package -o '$(BIN)/userconnectivity.zip' '$(DIST)'

publish: package ## publish the package to one function app: APP=name
	@sh infra/publish/publish.sh '$(APP)' '$(BIN)/userconnectivity.zip' '$(DIST)'

rollback: ## go back to the package before: APP=name
	@sh infra/publish/rollback.sh '$(APP)'

provision: ## deploy the templates: GROUP=name PARAMS=infra/small.bicepparam ARGS=--what-if
	@sh infra/publish/provision.sh '$(GROUP)' '$(PARAMS)' $(ARGS)

infra-check: ## check the templates; compile them where az is installed
	@go test ./infra/
	@if command -v '$(INFRA_CHECK)' >/dev/null; then '$(INFRA_CHECK)' infra/*.bicep infra/modules/*.bicep; fi
	@if command -v az >/dev/null; then az bicep build --file infra/main.bicep --stdout >/dev/null; fi

cosmos-emulator: setup ## the event log's suite against the npm emulator of Cosmos DB
	@.ci/cosmos-emulator

.PHONY: $(shell sed -nE 's/^([a-z-]+):.*/\1/p' $(firstword $(MAKEFILE_LIST)))
