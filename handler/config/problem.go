package config

import (
	"errors"
	"slices"
	"strings"
)

// Part is a part of the app, by its name in health.
type Part string

// The parts that settings are for. Process is the process itself, which cannot even listen without its settings.
const (
	Process  Part = "process"
	Redis    Part = "redis"
	Queue    Part = "queue"
	EventLog Part = "eventLog"
	Listener Part = "listener"
)

// Problem is a setting that is wrong.
type Problem struct {
	Setting string
	// Part cannot run until the setting is right, unless it is Minor: then its default is used until then.
	Part  Part
	Minor bool
	// Text is one line: what is wrong, what would be right, and for example what. Nothing of the value is in it but a
	// whole number.
	Text string
	// Example is a value that is right, "" where there is nothing to set.
	Example string
}

// Problems is all that is wrong with the settings.
type Problems []Problem

// String has a line for each problem.
func (p Problems) String() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.Text
	}
	return strings.Join(lines, "\n")
}

// Of returns why a part cannot run, nil when it can, and what else is wrong with its settings.
func (p Problems) Of(part Part) (unusable error, minor []string) {
	var why []string
	for _, problem := range p {
		switch {
		case problem.Part != part || slices.Contains(why, problem.Text) || slices.Contains(minor, problem.Text):
		case problem.Minor:
			minor = append(minor, problem.Text)
		default:
			why = append(why, problem.Text)
		}
	}
	if len(why) > 0 {
		unusable = errors.New(strings.Join(why, "; "))
	}
	return unusable, minor
}
