// Command interop reads what ModelKMS writes, from its specifications alone and with nothing but
// the Go standard library (and Unicode's tables, golang.org/x/text): artifacts (docs/spec/artifact-v1.md) and key answers
// (docs/spec/key-transport-v1.md); and is a whole client of the service: gRPC over net/http's
// HTTP/2, protobuf by hand. It shares no code with the product.
//
//	interop open-answer   < vector.json
//	interop read-artifact < request.json
//	interop open-model    < profile.json
//
// Each prints one JSON document, or {"error": reason, "message": …} and exits 1.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: interop open-answer|read-artifact|open-model")
		os.Exit(2)
	}
	var result any
	var err error
	switch os.Args[1] {
	case "open-answer":
		result, err = openAnswer(os.Stdin)
	case "read-artifact":
		result, err = readArtifact(os.Stdin)
	case "open-model":
		result, err = openModel(os.Stdin)
	default:
		fmt.Fprintf(os.Stderr, "no command %q\n", os.Args[1])
		os.Exit(2)
	}
	if err != nil {
		report(map[string]string{"error": reasonOf(err), "message": err.Error()})
		os.Exit(1)
	}
	report(result)
}

func report(document any) {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(document); err != nil {
		panic(err)
	}
}

// failure is an error that the specifications name by a reason.
type failure struct {
	reason string
	text   string
}

func (f failure) Error() string { return f.text }

func corrupt(format string, a ...any) error {
	return failure{"ARTIFACT_CORRUPT", fmt.Sprintf(format, a...)}
}

func mismatch(format string, a ...any) error {
	return failure{"ARTIFACT_MISMATCH", fmt.Sprintf(format, a...)}
}

func rejected(format string, a ...any) error {
	return failure{"ARCHIVE_REJECTED", fmt.Sprintf(format, a...)}
}

func reasonOf(err error) string {
	var known failure
	if errors.As(err, &known) {
		return known.reason
	}
	return "FAILED"
}
