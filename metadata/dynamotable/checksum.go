package dynamotable

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
)

// checkedClient reads each answer to its end and compares it with the checksum that
// DynamoDB sends along. The SDK's own check only logs a difference, when the answer
// is used already.
type checkedClient struct{ dynamodb.HTTPClient }

const checksumHeader = "X-Amz-Crc32"

func (c checkedClient) Do(request *http.Request) (*http.Response, error) {
	answer, err := c.HTTPClient.Do(request)
	if err != nil {
		return answer, err
	}
	body, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if sent := answer.Header.Get(checksumHeader); sent != "" {
		if want, err := strconv.ParseUint(sent, 10, 32); err != nil || uint32(want) != crc32.ChecksumIEEE(body) {
			return nil, fmt.Errorf("the answer of %d bytes does not have the checksum %s that came with it", len(body), sent)
		}
	}
	answer.Body = io.NopCloser(bytes.NewReader(body))
	return answer, nil
}
