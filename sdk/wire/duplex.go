package wire

import (
	"encoding/binary"
	"math"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// A duplex stream is a lease's stream over a WebSocket (RFC 6455). Its text
// messages are the events of a text/event-stream, one a message, from the
// provider. Its binary messages are vouchers for the lease's channel, one or
// more, from the renter, and receipts, from the provider. It has these forms
// because to parse a voucher as JSON costs more than to store it.
const (
	amountSize = 12             // a cumulative amount, 96 bits, big endian
	headSize   = amountSize + 2 // and the length of its signature, 16 bits
	MaxMessage = 64 << 10       // bytes of vouchers in a message
	maxSigned  = math.MaxUint16 // bytes of a signature, in form; a payee takes less
)

// EventProblem is a problem document (RFC 9457) in a duplex stream: a voucher
// was refused. What was accepted before it stays so.
const EventProblem = "payment-problem"

// AppendVoucher adds a voucher to a binary message. Its channel is the stream's
// and not written.
func AppendVoucher(message []byte, v channel.Voucher) ([]byte, error) {
	if len(v.Signature) > maxSigned {
		return message, malformed("channel %s: a signature of %d bytes", v.ChannelID, len(v.Signature))
	}
	message, err := AppendReceipt(message, v.Cumulative)
	if err != nil {
		return message, err
	}
	message = binary.BigEndian.AppendUint16(message, uint16(len(v.Signature)))
	return append(message, v.Signature...), nil
}

// ParseVouchers adds the vouchers of a binary message to those that wait. Their
// signatures share the message's memory.
func ParseVouchers(message []byte, channelID common.Hash, waiting []channel.Voucher) ([]channel.Voucher, error) {
	for len(message) > 0 {
		if len(message) < headSize {
			return waiting, malformed("channel %s: %d bytes are no voucher", channelID, len(message))
		}
		size := headSize + int(binary.BigEndian.Uint16(message[amountSize:]))
		if len(message) < size {
			return waiting, malformed("channel %s: a voucher of %d bytes was cut off after %d", channelID, size, len(message))
		}
		v := channel.Voucher{ChannelID: channelID, Signature: message[headSize:size:size]}
		v.Cumulative.SetBytes(message[:amountSize])
		waiting = append(waiting, v)
		message = message[size:]
	}
	return waiting, nil
}

// AppendReceipt adds what a provider answers vouchers with: the cumulative
// amount that is accepted, and on disk. It covers every voucher for as much or
// less.
func AppendReceipt(message []byte, accepted uint256.Int) ([]byte, error) {
	if limit := channel.MaxAmount(); accepted.Gt(&limit) {
		return message, malformed("an amount of more than 96 bits")
	}
	b := accepted.Bytes32()
	return append(message, b[32-amountSize:]...), nil
}

// ParseReceiptMessage reads a binary message from a provider.
func ParseReceiptMessage(message []byte) (accepted uint256.Int, err error) {
	if len(message) != amountSize {
		return accepted, malformed("%d bytes are no receipt of a duplex stream", len(message))
	}
	accepted.SetBytes(message)
	return accepted, nil
}
