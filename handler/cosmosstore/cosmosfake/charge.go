package cosmosfake

import "encoding/json"

// The charges follow the published rules of thumb for items without indexed properties: reading 1 KB costs 1 RU
// and 100 KB 10 RU, writing 1 KB 5 RU and 100 KB 50 RU, in between in proportion. A replace and a patch are
// charged as two writes, since the old version and its index entries go as well. A request that changes nothing
// is charged as the smallest read, a query as 2.3 RU and the read of what it returns. An account charges a
// little more for each indexed property.
const (
	failureCharge   = 1.0
	throttledCharge = 0.38
	metadataCharge  = 1.0
	queryCharge     = 2.3
	// maxDocument bounds a request, in bytes.
	maxDocument = 2 << 20
	// maxDepth bounds the levels of a document. See https://learn.microsoft.com/azure/cosmos-db/concepts-limits.
	maxDepth = 128
)

// charged is the charge of an item of size bytes that costs small at 1 KB and ten times that at 100 KB.
func charged(size int, small float64) float64 {
	return small + max(0, float64(size)/1024-1)*9*small/99
}

func size(body any) int {
	text, err := json.Marshal(body)
	if err != nil {
		return 0
	}
	return len(text)
}

func createCharge(text []byte) float64         { return charged(len(text), 5) }
func replaceCharge(text []byte) float64        { return 2 * charged(len(text), 5) }
func deleteCharge(body map[string]any) float64 { return charged(size(body), 5) }
func readCharge(body map[string]any) float64   { return charged(size(body), 1) }
