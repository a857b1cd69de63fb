package x402

// Code is an error by its name on the wire: the error of a 402, the errorReason
// of a receipt. It is an error, to be found with errors.As.
type Code string

func (c Code) Error() string { return string(c) }

// The codes. On CodeCumulativeMismatch and CodeCumulativeBelowClaimed a stock
// client repairs its state and pays once more; on all others it gives up.
const (
	CodeNoMatch Code = "No matching payment requirements" // what was accepted was not offered

	CodeScheme              Code = "invalid_batch_settlement_evm_scheme"
	CodeNetworkMismatch     Code = "invalid_batch_settlement_evm_network_mismatch"
	CodePayloadType         Code = "invalid_batch_settlement_evm_payload_type"
	CodeERC3009Required     Code = "invalid_batch_settlement_evm_erc3009_authorization_required"
	CodeMissingTokenDomain  Code = "invalid_batch_settlement_evm_missing_eip712_domain"
	CodeDepositBelowMinimum Code = "invalid_batch_settlement_evm_deposit_below_min_deposit"

	CodeChannelIDInvalid           Code = "invalid_batch_settlement_evm_channel_id_invalid"
	CodeChannelIDMismatch          Code = "invalid_batch_settlement_evm_channel_id_mismatch"
	CodeReceiverMismatch           Code = "invalid_batch_settlement_evm_receiver_mismatch"
	CodeReceiverAuthorizerMismatch Code = "invalid_batch_settlement_evm_receiver_authorizer_mismatch"
	CodeTokenMismatch              Code = "invalid_batch_settlement_evm_token_mismatch"
	CodeWithdrawDelayMismatch      Code = "invalid_batch_settlement_evm_withdraw_delay_mismatch"
	CodeWithdrawDelayOutOfRange    Code = "invalid_batch_settlement_evm_withdraw_delay_out_of_range"

	CodeChannelNotFound          Code = "invalid_batch_settlement_evm_channel_not_found"
	CodeChannelBusy              Code = "invalid_batch_settlement_evm_channel_busy"
	CodeMissingChannel           Code = "invalid_batch_settlement_evm_missing_channel"
	CodeVoucherSignature         Code = "invalid_batch_settlement_evm_voucher_signature"
	CodeCumulativeMismatch       Code = "invalid_batch_settlement_evm_cumulative_amount_mismatch"
	CodeCumulativeBelowClaimed   Code = "invalid_batch_settlement_evm_cumulative_below_claimed"
	CodeCumulativeExceedsBalance Code = "invalid_batch_settlement_evm_cumulative_exceeds_balance"
	CodeStateUnavailable         Code = "invalid_batch_settlement_evm_verification_state_unavailable"
	CodeReadFailed               Code = "invalid_batch_settlement_evm_rpc_read_failed"

	CodeValidBefore          Code = "invalid_batch_settlement_evm_payload_authorization_valid_before"
	CodeValidAfter           Code = "invalid_batch_settlement_evm_payload_authorization_valid_after"
	CodeReceiveAuthorization Code = "invalid_batch_settlement_evm_receive_authorization_signature"
	CodeInsufficientBalance  Code = "invalid_batch_settlement_evm_insufficient_balance" // of the payer's tokens
	CodeDepositSimulation    Code = "invalid_batch_settlement_evm_deposit_simulation_failed"
	CodeDepositFailed        Code = "invalid_batch_settlement_evm_deposit_transaction_failed"

	CodeRefundPayload       Code = "invalid_batch_settlement_evm_refund_payload"
	CodeRefundNoBalance     Code = "invalid_batch_settlement_evm_refund_no_balance"
	CodeRefundAmountInvalid Code = "invalid_batch_settlement_evm_refund_amount_invalid"
	CodeRefundSimulation    Code = "invalid_batch_settlement_evm_refund_simulation_failed"
	CodeRefundFailed        Code = "invalid_batch_settlement_evm_refund_transaction_failed"
)
