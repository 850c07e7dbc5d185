# Every target is thin: the work is in Go. `make help` lists them.
SHELL      := /bin/bash
PORT       ?= 7071
DATA_DIR   ?= .data
GOOS       := $(shell go env GOOS)
VERSION    := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BUILD      := CGO_ENABLED=0 go build -trimpath
LDFLAGS    := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help run test stage demo

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: stage ## run everything on this machine: PORT=7071 DATA_DIR=.data REDIS_URL=
	@mkdir -p bin && $(BUILD) -o bin/localhost ./handler/cmd/localhost
	@exec bin/localhost --package dist --port $(PORT) --data-dir $(DATA_DIR)

stage: ## build the deployment package's folder, dist/
	@rm -rf dist && mkdir -p dist
	@$(BUILD) -ldflags '$(LDFLAGS)' -o dist/handler ./handler
	@cp -R host.json functions/* dist/

demo: stage ## 1,000 users beat, 300 fall silent; checks every promise: KILL=1 ALL=1
	@mkdir -p bin && $(BUILD) -o bin/localhost ./handler/cmd/localhost && $(BUILD) -o bin/demo ./handler/cmd/demo
	@bin/demo $(if $(KILL),-kill) $(if $(ALL),-all) $(if $(REDIS),-redis $(REDIS)) $(if $(NOTIFICATIONS),-notifications $(NOTIFICATIONS))
