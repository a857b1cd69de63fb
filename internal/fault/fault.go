// Package fault names the steps at which a program that holds money could die,
// and kills it there when a test asks for it.
//
// The programs call Point at each step. It does nothing, and costs nothing,
// unless the program is built with the tag faults; then the environment variable
// GPUPAY_FAULT=step, or step#n, ends the process with SIGKILL at the first or
// n-th time that it comes to the step. Nothing is flushed, closed or said: it is
// as if the power went.
package fault

// Env is the variable that chooses a step.
const Env = "GPUPAY_FAULT"

// Step is a moment between two things that must not be lost or done twice. Its
// name says what was done last.
type Step string

// A payee's steps, from a voucher's arrival to its settlement.
const (
	VoucherVerified    Step = "voucher verified"
	VoucherAccepted    Step = "voucher on disk"
	OpenChecked        Step = "open: authorization checked"
	OpenRegistered     Step = "open: registered"
	TopUpObserved      Step = "top up: observed"
	LeaseWritten       Step = "lease row written"
	LeaseAllocated     Step = "allocated"
	MeterBound         Step = "meter bound" // by a gateway whose GPUs nodes meter
	LeasePlaced        Step = "placed"
	LeaseActivated     Step = "activated"
	RecordReserved     Step = "record reserved"
	RecordMarked       Step = "record marked"
	RecordSigned       Step = "record signed"
	RecordStored       Step = "record on disk"
	RecordSent         Step = "record sent"
	LeaseReleased      Step = "devices released"
	SettlementChosen   Step = "settlement chosen"
	SettlementObserved Step = "settlement observed"
	CloseObserved      Step = "close: observed"
)

// A payer's steps, from the wish to rent to the refund.
const (
	RentalStored     Step = "rental on disk"
	ChannelStored    Step = "channel on disk"
	DepositSigned    Step = "authorization signed"
	FundingStored    Step = "funding on disk"
	LeaseAsked       Step = "lease asked for"
	LeaseBegun       Step = "lease on disk"
	CheckerStored    Step = "checker state on disk"
	VoucherReserved  Step = "voucher reserved"
	VoucherSigned    Step = "voucher signed"
	VoucherStored    Step = "voucher on disk (payer)"
	VoucherDelivered Step = "voucher sent"
	TopUpStored      Step = "top-up on disk"
	TopUpSigned      Step = "top-up signed"
	LeaseReturned    Step = "lease given back"
	PaymentsEnded    Step = "payments ended"
	CloseAnswered    Step = "close answered"
	CloseSeen        Step = "close seen on the chain"
)

// Steps of a transaction. Sent names them with what the transaction does.
const (
	TxStored    Step = "outbox written"
	TxBroadcast Step = "broadcast"
	TxMined     Step = "mined"
)

// Of is a step of a transaction of one kind.
func Of(kind string, step Step) Step { return Step(kind + ": " + string(step)) }

// Provider lists the steps that a provider comes to which meters itself.
func Provider() []Step {
	return []Step{
		OpenChecked, Of("open", TxStored), Of("open", TxBroadcast), Of("open", TxMined), OpenRegistered,
		LeaseWritten, LeaseAllocated, LeasePlaced, LeaseActivated, VoucherVerified, VoucherAccepted, RecordReserved, RecordMarked, RecordSigned, RecordStored, RecordSent,
		Of("top up", TxStored), Of("top up", TxBroadcast), Of("top up", TxMined), TopUpObserved,
		SettlementChosen, Of("settle", TxStored), Of("settle", TxBroadcast), Of("settle", TxMined), SettlementObserved,
		LeaseReleased, Of("close", TxStored), Of("close", TxBroadcast), Of("close", TxMined), CloseObserved,
	}
}

// Renter lists the steps that a renter comes to, with native coin of its own or
// without.
func Renter(coin bool) []Step {
	funding := []Step{DepositSigned}
	if coin {
		funding = []Step{Of("approve", TxStored), Of("approve", TxBroadcast), Of("approve", TxMined),
			Of("open", TxStored), Of("open", TxBroadcast), Of("open", TxMined)}
	}
	steps := append([]Step{RentalStored, ChannelStored}, funding...)
	return append(steps, FundingStored, LeaseAsked, LeaseBegun, CheckerStored,
		VoucherReserved, VoucherSigned, VoucherStored, VoucherDelivered, TopUpStored, TopUpSigned,
		LeaseReturned, PaymentsEnded, CloseAnswered, CloseSeen)
}
