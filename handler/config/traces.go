package config

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// The words that a setting of traces may have, its default first.
var (
	exporters = []string{"otlp", "console", "none"}
	samplers  = []string{"parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio", "always_on", "always_off", "traceidratio"}
)

// traces reads the settings of traces, which have the standard names of OpenTelemetry. One that is for traces alone goes
// before one that is for all signals. While one is wrong there are no traces: nothing else depends on them, and to send
// more of them than was asked for, or to another receiver, may cost something.
// See https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
func (r *reader) traces(c *Config) {
	before := len(r.problems)
	all := r.text(Process, "OTEL_EXPORTER_OTLP_ENDPOINT", "", otlpEndpoint)
	if all != "" {
		all = strings.TrimSuffix(all, "/") + "/v1/traces"
	}
	c.TracesEndpoint = r.text(Process, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", all, otlpEndpoint)
	c.TracesHeaders = Secret(r.text(Process, "OTEL_EXPORTER_OTLP_TRACES_HEADERS", r.text(Process, "OTEL_EXPORTER_OTLP_HEADERS", "", otlpHeaders), otlpHeaders))
	c.TracesTimeout = time.Duration(r.integer(Process, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
		r.integer(Process, "OTEL_EXPORTER_OTLP_TIMEOUT", 10_000, 1, 600_000), 1, 600_000)) * time.Millisecond
	r.text(Process, "OTEL_EXPORTER_OTLP_PROTOCOL", "", otlpProtocol)
	r.text(Process, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "", otlpProtocol)
	c.TracesExporter = r.choice(Process, "OTEL_TRACES_EXPORTER", exporters...)
	c.TracesSampler = r.choice(Process, "OTEL_TRACES_SAMPLER", samplers...)
	c.TracesRatio = r.ratio("OTEL_TRACES_SAMPLER_ARG")
	c.TracesService = r.text(Process, "OTEL_SERVICE_NAME", "", serviceName)
	c.TracesAttributes = r.text(Process, "OTEL_RESOURCE_ATTRIBUTES", "", resourceAttributes)
	if r.boolean(Process, "OTEL_SDK_DISABLED", false) {
		c.TracesExporter = "none"
	}
	if len(r.problems) > before {
		c.TracesEndpoint = ""
		if c.TracesExporter == "console" {
			c.TracesExporter = exporters[0]
		}
	}
}

func (r *reader) ratio(name string) float64 {
	ratio := 1.0
	r.text(Process, name, "", form{want: "a number between 0 and 1", example: "0.1", check: func(v string) fault {
		given, err := strconv.ParseFloat(v, 64)
		if err != nil || !(given >= 0 && given <= 1) { // NaN is neither
			return mismatch
		}
		ratio = given
		return ""
	}})
	return ratio
}

var otlpEndpoint = plainURL("the http URL of a receiver of OTLP", "http://127.0.0.1:4318", true)

var otlpProtocol = form{want: "http/protobuf", example: "http/protobuf", check: func(v string) fault {
	if !strings.EqualFold(v, "http/protobuf") {
		return "this app speaks no other; a receiver of gRPC takes that on another port, usually 4318"
	}
	return ""
}}

var serviceName = form{want: "a name of at most 255 bytes", example: "presence", check: func(v string) fault {
	switch what := pasted(v); {
	case what != "":
		return "it " + what
	case len(v) > 255:
		return mismatch
	}
	return ""
}}

var otlpHeaders = form{want: "headers as name=value, with commas between", example: "x-api-key=key", check: func(v string) fault {
	headers, err := Pairs(v)
	if err != nil {
		return fault(err.Error())
	}
	for name, value := range headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return "one of them is no header"
		}
	}
	return ""
}}

var resourceAttributes = form{want: "attributes as name=value, with commas between", example: "deployment.environment.name=test", check: func(v string) fault {
	if _, err := Pairs(v); err != nil {
		return fault(err.Error())
	}
	return ""
}}

// maxPairs bounds the pairs of one setting.
const maxPairs = 64

// Pairs reads a list of name=value with commas between, whose values are percent-encoded where they must be, as
// OTEL_EXPORTER_OTLP_HEADERS and OTEL_RESOURCE_ATTRIBUTES are. An error has nothing of the text in it.
func Pairs(text string) (map[string]string, error) {
	pairs := map[string]string{}
	n := 0
	for pair := range strings.SplitSeq(text, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		n++
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		switch {
		case !ok || name == "":
			return nil, fmt.Errorf("number %d of them is not name=value", n)
		case err != nil:
			return nil, fmt.Errorf("the value of number %d of them has a %% that begins no percent-encoding; write it as %%25", n)
		case n > maxPairs:
			return nil, errors.New("it has more than " + strconv.Itoa(maxPairs))
		}
		pairs[name] = value
	}
	return pairs, nil
}

// Traced reports whether this process makes traces.
func (c Config) Traced() bool {
	return c.TracesExporter == "console" || c.TracesExporter == "otlp" && c.TracesEndpoint != ""
}
