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

// Has reports whether a setting is among them.
func (p Problems) Has(setting string) bool {
	return slices.ContainsFunc(p, func(problem Problem) bool { return problem.Setting == setting })
}

// Unusable returns why a part cannot run, nil when it can.
func (p Problems) Unusable(part Part) error {
	if why := p.texts(part, false); len(why) > 0 {
		return errors.New(strings.Join(why, "; "))
	}
	return nil
}

// Minor returns what is wrong with the settings of a part and does not hold it up.
func (p Problems) Minor(part Part) []string { return p.texts(part, true) }

// texts returns the texts of the problems of a part, each once.
func (p Problems) texts(part Part, minor bool) []string {
	var texts []string
	for _, problem := range p {
		if problem.Part == part && problem.Minor == minor && !slices.Contains(texts, problem.Text) {
			texts = append(texts, problem.Text)
		}
	}
	return texts
}
