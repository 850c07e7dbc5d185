// Command package makes the deployment package: a zip of a staged function app that the Functions host runs as
// it is.
//
//	package [-o app.zip] DIR
//
// The same files give the same bytes, whenever and wherever it runs, so the hash of a package names it. It
// prints the file, its size and its SHA-256.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	out := flag.String("o", "app.zip", "the `file` to write")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: package [-o app.zip] DIR")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	sum, size, err := writePackage(*out, flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1)
	}
	fmt.Printf("%s: %d bytes, sha256 %s\n", *out, size, sum)
}
