package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/wire"
)

// Post pays by a request of its own and returns what is accepted by its receipt.
func (p *Process) Post(ctx context.Context, client *http.Client, credential string) (accepted uint256.Int, err error) {
	req, err := http.NewRequestWithContext(ctx, "POST", p.URL+"/lease", nil)
	if err != nil {
		return accepted, err
	}
	req.Header.Set("Authorization", credential)
	resp, err := client.Do(req)
	if err != nil {
		return accepted, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return accepted, wire.ParseProblem(resp)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return accepted, err
	}
	var receipt wire.Receipt
	if err := json.Unmarshal(body, &receipt); err != nil {
		return accepted, fmt.Errorf("a voucher was acknowledged as %.300s: %w", body, err)
	}
	return receipt.AcceptedCumulative.Int, nil
}
