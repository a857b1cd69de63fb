// Package model drives the parts that move money at random and holds them to what is promised: who may lose what.
//
// The parts are real: the contracts' bytecode on go-ethereum's EVM (memchain), vouchers, stores on SQLite files, outbox,
// settlers, watchers. Only time and the chain's blocks are the test's. What is random are payments, deposits, closes,
// withdrawals, refunds, restarts, restored files, re-orgs, halted and forgetful nodes, and absences. Beside them a model
// of a few integers a channel says what each answer has to be, and what each side must have in the end.
//
// TestBooks is the whole of it. Programs that live in real time, with HTTP between them, have a market (TestMarket, TestHoard)
// and parts of one in which a fault is likely that needs several things at once: TestLastMoment, TestSlowAnswer, TestDebtors,
// TestDrained, TestRestored, TestTicks, TestAbsence.
//
// It is a module of its own, so that nobody who uses gpupay has its tools among their dependencies.
package model
