// Package slotmeter holds random steps of everybody against the meter of slots: renters whose requests end, are aborted or fail,
// devices that fall away and come back, restarts and reboots. What is billed is counted a second time, by the definition alone.
package slotmeter
