package gateways

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// Member is the name under which a gateway lives, which is the owner of its leases, and the time in which they are its own. When that
// runs out it has another name: whoever takes its leases meanwhile finds nobody who could write in the old one.
type Member struct {
	members cluster.Members
	ttl     time.Duration

	mu     sync.Mutex
	id     string
	said   string          // the name under which the database may have this gateway living
	past   []string        // those under which it may, too, and does not
	looked time.Time       // when the last look that read everything began
	expiry *time.Timer     // fires when others may take our leases
	tenure context.Context // ends then
	depose context.CancelFunc
}

func newMember(db *store.DB, ttl time.Duration) *Member {
	m := &Member{members: cluster.Members{DB: db}, ttl: ttl, id: leasestore.NewName()}
	m.tenure, m.depose = context.WithCancel(context.Background())
	return m
}

// Tenure is the time in which a lease that is taken up now is ours.
func (m *Member) Tenure() context.Context {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tenure
}

// Identity is the gateway's name.
func (m *Member) Identity() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id
}

// saw notes that everything was read, from a time on.
func (m *Member) saw(began time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looked = began
}

// beat says that this gateway lives. Its time counts from its last look, as one that writes and cannot read ends leases that are paid
// and runs those that are over; and so from before it says so: the others, who count from after, never take a lease that it still
// believes in. expired is called when that time is over.
func (m *Member) beat(ctx context.Context, expired func()) error {
	m.mu.Lock()
	id, past, until := m.id, slices.Clone(m.past), m.looked.Add(m.ttl)
	late := time.Until(until) <= 0
	if !late {
		m.said = id // also where the answer is lost
	}
	m.mu.Unlock()
	if late {
		return fmt.Errorf("what other gateways wrote could not be read for %s: others take this one's leases", m.ttl)
	}
	if err := m.members.Heartbeat(ctx, id, time.Until(until), past); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.past = slices.DeleteFunc(m.past, func(name string) bool { return slices.Contains(past, name) })
	if m.id != id {
		return nil // it came too late
	}
	left := time.Until(until)
	if m.expiry == nil {
		m.expiry = time.AfterFunc(left, expired)
	} else {
		m.expiry.Reset(left)
	}
	return nil
}

// rename has what is taken up from here on taken under another name, for the time of its own: that of the old name is over.
func (m *Member) rename(stopped func() bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.said == m.id { // the database may have it living for longer, as where the server's clock was set back
		m.past = append(m.past, m.id)
	}
	m.id = leasestore.NewName()
	m.expiry.Stop() // that of the old name, where it has not fired
	if !stopped() {
		m.expiry.Reset(m.ttl) // also of what is taken up before it is known that the new name could be said
	}
	m.depose()
	m.tenure, m.depose = context.WithCancel(context.Background())
}

// leave tells the other gateways that this one lives no more, under any of its names.
func (m *Member) leave() error {
	m.mu.Lock()
	if m.expiry != nil {
		m.expiry.Stop()
	}
	names := append(slices.Clone(m.past), m.id)
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return m.members.Deregister(ctx, names...)
}
