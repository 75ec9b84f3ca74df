//! The table of settings. What is not here cannot be set.

use super::{
    Settings,
    value::{Bounds, Slot},
};
use portico_wire::limits::{FRAME_BYTES_CEILING, FRAME_BYTES_TO_CLIENT_MAX, RECEIVE_MAX_CEILING};

/// Each pair of shards has a queue.
pub(crate) const SHARDS_MAX: u16 = 256;

/// One setting.
pub(crate) struct Knob {
    /// `section.name`, as in the file. A unit comes last in the name.
    pub(crate) key: &'static str,
    /// What it does and why its default is what it is.
    pub(crate) about: &'static str,
    pub(super) bounds: Bounds,
    pub(super) slot: fn(&mut Settings) -> Slot<'_>,
}

impl std::fmt::Debug for Knob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Knob").field(&self.key).finish()
    }
}

impl Knob {
    pub(super) fn find(key: &str) -> Option<&'static Self> {
        KNOBS.iter().find(|knob| knob.key == key)
    }

    pub(super) fn is_section(name: &str) -> bool {
        KNOBS.iter().any(|knob| knob.section() == name)
    }

    pub(super) fn section(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }

    pub(super) fn name(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(_, name)| name)
    }

    /// The environment variable: `PORTICO_` and the key in upper snake case, without `SERVER_`.
    pub(crate) fn variable(&self) -> String {
        let path = self.key.strip_prefix("server.").unwrap_or(self.key);
        format!("PORTICO_{}", path.replace('.', "_").to_uppercase())
    }
}

const NO_BOUNDS: Bounds = bounds(0, 0, "");
const FRAME_TO_CLIENT: u64 = FRAME_BYTES_TO_CLIENT_MAX as u64;
const GIB: u64 = 1 << 30;

const fn bounds(min: u64, max: u64, unit: &'static str) -> Bounds {
    Bounds { min, max, unit }
}

macro_rules! knobs {
    ($($key:literal, $slot:ident($($field:ident).+), $bounds:expr, $about:literal;)+) => {
        /// Every setting, in the order of the printed file.
        pub(crate) static KNOBS: &[Knob] = &[
            $(Knob {
                key: $key,
                about: $about,
                bounds: $bounds,
                slot: |settings| Slot::$slot(&mut settings.$($field).+),
            },)+
        ];
    };
}

knobs! {
    "server.listen", Address(server.listen), NO_BOUNDS,
    "Where clients connect (binary protocol). Loopback by default: opening a port to others is a \
     decision. Port 0 takes a free one.";
    "server.allow_plaintext", Switch(server.allow_plaintext), NO_BOUNDS,
    "Lets server.listen be another address than one of this machine. Tokens and messages then cross \
     the network as they are: right behind a proxy that ends TLS, wrong elsewhere.";
    "server.admin", Address(server.admin), NO_BOUNDS,
    "Where operators ask for /healthz, /readyz, /metrics and /version. These have no sign-in: keep it \
     on loopback or in a network of your own.";
    "server.data", Path(server.data), NO_BOUNDS,
    "The data directory: keys, and the embedded store. One running gateway per directory.";
    "server.backend", Backend(server.backend), NO_BOUNDS,
    "Where messages are kept: embedded survives a power cut, memory forgets all when the process \
     ends (for tests).";
    "server.shards", Count(server.shards), bounds(1, SHARDS_MAX as u64, "shards"),
    "Tables of connections, each with a ring of its own. \"auto\" is one per CPU. More than CPUs is \
     allowed: they share a thread per CPU, and let one machine hold more connections than its limit of \
     open files.";
    "server.cpus", Cpus(server.cpus), NO_BOUNDS,
    "CPUs to which a thread each is pinned; the shards are spread over them in this order, from the \
     start again when there are more. \"all\" is every CPU that the process may use.";
    "server.node", Name(server.node), NO_BOUNDS,
    "Name of this gateway in WELCOME and in logs, for support. Empty is the name of the host.";
    "server.core_dumps", CoreDumps(server.core_dumps), NO_BOUNDS,
    "Whether the kernel may write the memory of the process to a file when it crashes, keys, tokens \
     and messages included. With \"never\" other processes of its user cannot look into it either, \
     nor see its open files: debuggers and profilers then want root.";

    "server.proxy_from", Networks(server.proxy_from), NO_BOUNDS,
    "Balancers: connections from these networks begin with a PROXY header of version 2, and count as \
     coming from where it says. One without it is closed with 4012. From other networks the header is \
     a frame that is too long.";

    "session.handshake_ms", U32(limits.handshake_ms), bounds(100, 600_000, "ms"),
    "From accept to WELCOME. Connections that say nothing are closed with 4014 after it.";
    "session.user_timeout_ms", U32(session.user_timeout_ms), bounds(0, 3_600_000, "ms"),
    "A connection whose peer has not confirmed bytes that were sent, or takes none, for this long is \
     ended by the kernel (TCP_USER_TIMEOUT): found sooner than by its heartbeat when something is \
     said to it. 0 leaves it to the kernel, which tries for a quarter of an hour.";
    "session.heartbeat_s", U16(session.heartbeat_s), bounds(1, 3_600, "s"),
    "Interval between signs of life that is assumed until the first PING. A session is closed with \
     4002 after twice its interval and 15 s.";
    "session.heartbeat_min_s", U16(session.heartbeat_min_s), bounds(1, 3_600, "s"),
    "Shortest interval that a PING may promise. Shorter ones cost CPU per idle connection.";
    "session.heartbeat_max_s", U16(session.heartbeat_max_s), bounds(1, 3_600, "s"),
    "Longest interval that a PING may promise. Longer ones find dead connections later.";

    "tls.listen", MaybeAddress(tls.listen), NO_BOUNDS,
    "Where clients connect with TLS 1.3. Needs tls.cert and tls.key, or tls.self_signed. Port 0 takes \
     a free one.";
    "tls.cert", MaybePath(tls.cert), NO_BOUNDS,
    "PEM file: the server's certificate, then those between it and its authority. Read again when it \
     changes, and on SIGHUP; connections stay.";
    "tls.key", MaybePath(tls.key), NO_BOUNDS,
    "PEM file: the private key of the certificate, not encrypted.";
    "tls.self_signed", Switch(tls.self_signed), NO_BOUNDS,
    "For trying it out: a certificate that nobody has signed, made in the data directory as \
     tls-cert.pem and used again while it is valid. Clients have to be given that file.";
    "tls.ticket_secret", MaybePath(tls.ticket_secret), NO_BOUNDS,
    "File of 32 to 1024 random bytes. Gateways with the same one resume each other's sessions, also \
     after a restart. As precious as the private key. Without it, the secret ends with the process.";
    "tls.client_ca", MaybePath(tls.client_ca), NO_BOUNDS,
    "PEM file: authorities whose certificates clients may show. One with the URI portico:user:7, or \
     portico:user:7:device:1, among its alternative names logs that user in; a token beside it has \
     to name the same.";
    "tls.client_required", Switch(tls.client_required), NO_BOUNDS,
    "Refuses clients without such a certificate.";
    "tls.handshakes_per_turn", Usize(tls.handshakes_per_turn), bounds(1, 1_024, "handshakes"),
    "Handshakes that a shard goes on with at a time; none is begun half a millisecond after the first. \
     Fewer let messages of live connections through sooner in a storm of new ones.";
    "tls.handshake_ms", U32(tls.handshake_ms), bounds(100, 600_000, "ms"),
    "From accept to the end of the TLS handshake; then session.handshake_ms begins.";
    "tls.hibernate_after_s", U32(tls.hibernate_after_s), bounds(0, 86_400, "s"),
    "A session that has been quiet for this long, or up to twice as long, gives back 1.1 KB; its next \
     record costs some microseconds more. 0 is never.";

    "auth.audience", Name(auth.audience), NO_BOUNDS,
    "The aud claim that access tokens must carry if they carry one.";
    "auth.issuer", Text(auth.issuer), NO_BOUNDS,
    "The iss claim that every access token must carry. Empty is any, or none; tokens of the key in the \
     data directory carry none.";
    "auth.clock_skew_s", U64(auth.clock_skew_s), bounds(0, 600, "s"),
    "How far the clocks of token issuers may differ from this machine's.";
    "auth.token_ttl_s_max", U64(auth.token_ttl_s_max), bounds(60, 3_650 * 86_400, "s"),
    "Longest life of an access token; what lives longer is refused. A token that leaked is good for \
     as long, unless its device is revoked, and revocations are kept in memory for as long.";
    "auth.resume_ttl_s", U32(auth.resume_ttl_s), bounds(0, 604_800, "s"),
    "How long after a login with an access token reconnects may do without one. 0 issues no resume \
     tokens. A token that leaked is good for as long.";
    "auth.keys", Paths(auth.keys), NO_BOUNDS,
    "Public keys (Ed25519 or P-256 in PEM, JSON Web Keys or sets of them) whose tokens are accepted \
     beside those of the key in the data directory. At most 7 that have no kid of their own. Files are \
     read again when they change, and on SIGHUP.";
    "auth.jwks_url", KeyUrl(auth.jwks_url), NO_BOUNDS,
    "Address of a JSON Web Key Set whose keys are accepted as well, fetched over TLS 1.3. When it does not \
     answer, the last good set stays. Its tokens must carry aud.";
    "auth.jwks_ca", MaybePath(auth.jwks_ca), NO_BOUNDS,
    "Authorities trusted for auth.jwks_url (PEM file). Empty is those of the system.";
    "auth.jwks_refresh_s", U32(auth.jwks_refresh_s), bounds(5, 86_400, "s"),
    "How often auth.jwks_url is asked. A key that the issuer withdraws is accepted for as long.";
    "auth.jwks_cooldown_s", U32(auth.jwks_cooldown_s), bounds(1, 3_600, "s"),
    "A token that names a key which is not known has auth.jwks_url asked at once, but not more often \
     than this, however many come. Also the time between attempts while it does not answer.";

    "limits.connections_max", U32(shard.connections_max), bounds(0, 1 << 20, "connections"),
    "Connections of one shard. 0 is as many as the limit of open files allows.";
    "limits.logins_per_s", U32(limits.logins_per_s), bounds(0, 10_000_000, "logins/s"),
    "Logins that the whole gateway takes per second, an even part of it each shard; more are closed \
     with 4005 and their place in line as retry_after_ms. It also decides over how long clients \
     spread their return when all connections end together. Set it to what this machine and its \
     store take beside the messages. 0 is no bound, and no spread.";
    "limits.sign_ins_max", Usize(limits.sign_ins_max), bounds(1, 1 << 20, "logins"),
    "Logins of one shard that may wait for their token to be checked; more are closed like those \
     above logins_per_s.";
    "limits.login_reads_max", Usize(limits.login_reads_max), bounds(1, 1 << 24, "reads"),
    "Reads of inboxes in flight, of all shards together: past it, logins that need one are put off, so \
     that those who are in do not wait for the store behind them.";
    "limits.absent_max", Usize(limits.absent_max), bounds(0, 1 << 24, "devices"),
    "Devices that each shard remembers when they leave with nothing waiting for them: they come \
     back without a read of the store. The table takes at most 24 bytes for each, and grows with \
     those who are away.";
    "limits.unread_bytes_max", Usize(shard.unread_bytes_max), bounds(1 << 20, 64 * GIB, "bytes"),
    "Incomplete frames that one shard holds together. A connection that would exceed it, and holds \
     more than 8 KiB, is ended.";
    "limits.frame_bytes_max", Usize(limits.frame_bytes_max),
    bounds(FRAME_TO_CLIENT, FRAME_BYTES_CEILING as u64, "bytes"),
    "Largest frame a client may send after WELCOME; longer ones close the connection with 4013.";
    "limits.outbox_bytes_soft", Usize(limits.outbox_bytes_soft), bounds(4_096, GIB, "bytes"),
    "Queued for one connection past this, the gateway stops pushing: messages wait in the store, \
     ephemeral frames are dropped.";
    "limits.outbox_bytes_max", Usize(limits.outbox_bytes_max), bounds(4_096, GIB, "bytes"),
    "Queued for one connection past this, it is closed with 4003. Bounds the memory that a client \
     which asks and never reads can take.";
    "limits.outboxes_bytes_max", Usize(limits.outboxes_bytes_max), bounds(1 << 20, 64 * GIB, "bytes"),
    "Queued for all connections, an even part of it in each shard. Past it each connection has room \
     for one frame: messages wait in the store, and who lets answers pile up is closed at 72 KiB.";
    "limits.stalled_ms", U32(limits.stalled_ms), bounds(100, 3_600_000, "ms"),
    "A connection with something queued that takes nothing for two seconds has its queue taken \
     back: messages wait in the store. After this long it is closed with 4003.";
    "limits.requests_max", U32(limits.requests_max), bounds(1, 65_536, "requests"),
    "Requests of one connection that may be unanswered; more are refused with RATE_LIMITED.";
    "limits.receive_max", U32(limits.receive_max), bounds(1, RECEIVE_MAX_CEILING as u64, "frames"),
    "Messages a client may ask to leave unacknowledged.";
    "limits.page_entries_max", U32(limits.page_entries_max), bounds(1, 4_096, "entries"),
    "Entries of one read when a connection catches up from the store.";
    "limits.page_bytes_max", U32(limits.page_bytes_max), bounds(1_024, 16 << 20, "bytes"),
    "Bytes of one such read. At least one entry is read whatever its size.";
    "limits.pages_max", Usize(limits.pages_max), bounds(1, 1 << 20, "pages"),
    "Pages that are being read, all shards together (4 of each shard at least): so much of the \
     backlogs is in memory at a time. Further connections wait for their turn.";
    "limits.store_requests_soft", Usize(limits.store_requests_soft), bounds(1, 1 << 24, "requests"),
    "Storage requests of one shard in flight past this, it stops reading from its clients.";
    "limits.store_requests_max", Usize(limits.store_requests_max), bounds(1, 1 << 24, "requests"),
    "Past this, messages are refused with OVERLOADED.";
    "limits.store_bytes_soft", Usize(limits.store_bytes_soft), bounds(FRAME_TO_CLIENT, 64 * GIB, "bytes"),
    "Like store_requests_soft, by the memory that the requests hold.";
    "limits.store_bytes_max", Usize(limits.store_bytes_max), bounds(FRAME_TO_CLIENT, 64 * GIB, "bytes"),
    "Like store_requests_max, by the memory that the requests hold.";
    "limits.store_timeout_ms", U32(limits.store_timeout_ms), bounds(100, 600_000, "ms"),
    "A storage request without an answer for this long is reported to the client as unknown; it \
     tries again with RETRY.";
    "limits.gate_messages_max", Usize(limits.gate_messages_max), bounds(1, 65_536, "messages"),
    "Messages of one device and conversation that may wait while the store is searched for a first \
     attempt; more are refused with OVERLOADED.";
    "limits.flush_ms", U32(limits.flush_ms), bounds(1, 60_000, "ms"),
    "How long a receipt waits for more of its conversation; cursors and watermarks are written four \
     times less often. After a crash so much of them is told again; no message depends on it.";
    "limits.unsaved_max", Usize(limits.unsaved_max), bounds(16, 1 << 24, "watermarks"),
    "Watermarks of one shard that may wait to be written; past it a READ is refused with \
     OVERLOADED.";
    "limits.group_members_max", U16(limits.group_members_max), bounds(2, 1_024, "members"),
    "Members a group may ask for at most; a GROUP_CREATE that wants more is refused with \
     BAD_ARGUMENT. Groups that exist keep what they have.";
    "limits.groups_bytes_max", Usize(limits.groups_bytes_max), bounds(1 << 20, 64 * GIB, "bytes"),
    "Groups kept in memory at their homes, all shards together: about 500 bytes each and 16 a member, \
     24 more while receipts move. Those not used for longest go and are read again when needed.";
    "limits.group_ops_max", Usize(limits.group_ops_max), bounds(16, 1 << 24, "operations"),
    "Operations of one shard that may wait for a group to be read or for an edit of it; more are \
     refused with OVERLOADED.";
    "limits.fan_outs_max", Usize(limits.fan_outs_max), bounds(1, 1 << 20, "messages"),
    "Messages of one shard's groups that may be on their way to members; more are refused with \
     OVERLOADED.";

    "limits.presence_grace_ms", U32(limits.presence_grace_ms), bounds(0, 3_600_000, "ms"),
    "A user whose last connection has ended is seen offline after this, unless the client said that \
     it leaves. Shorter makes reconnects flap.";
    "limits.presence_subs_max", Usize(limits.presence_subs_max), bounds(500, 1 << 32, "subscriptions"),
    "Subscriptions to the presence of users, all shards together; more are refused with OVERLOADED. \
     Each takes about 24 bytes, 40 at most.";
    "limits.presence_left_max", Usize(limits.presence_left_max), bounds(0, 1 << 24, "users"),
    "Users who have left that are remembered, with the time, all shards together, at 82 bytes at most. \
     Of others the store is asked when somebody watches them.";
    "limits.people_cache_bytes", Usize(limits.people_cache_bytes), bounds(4_096, 64 * GIB, "bytes"),
    "Cache of the settings and blocks of those users who have any, all shards together.";
    "limits.people_reads_max", Usize(limits.people_reads_max), bounds(1, 1 << 20, "reads"),
    "Users whose settings and blocks are being read, all shards together (4 of each shard at least); \
     further ones wait for their turn.";
    "limits.people_waiting_max", Usize(limits.people_waiting_max), bounds(1, 1 << 20, "questions"),
    "What may wait in one shard for those reads. Messages past it are refused with OVERLOADED, \
     signals and presence are dropped.";

    "rates.exempt", Networks(limits.rates.exempt), NO_BOUNDS,
    "Connections from these networks have none of the limits in this section. Loopback by default: \
     what runs on this machine is trusted, and so is whoever comes through a proxy on it. With such \
     a proxy in front of clients empty it, or the limits hold for nobody.";
    "rates.frames_per_s", U32(limits.rates.frames.per_s), bounds(0, 1_000_000, "frames/s"),
    "Frames of one connection after its login. What exceeds gets RATE_LIMITED and the time of its own \
     place in line. 0 is no bound, here and in the rest of this section.";
    "rates.frames_burst", U32(limits.rates.frames.burst), bounds(1, 1_000_000, "frames"),
    "Frames that may come at once after a pause.";
    "rates.bytes_per_s", U32(limits.rates.bytes.per_s), bounds(0, 1 << 30, "bytes/s"),
    "Bytes of those frames.";
    "rates.bytes_burst", U32(limits.rates.bytes.burst), bounds(1, 1 << 30, "bytes"),
    "Bytes that may come at once after a pause. A frame that is larger takes all of it.";
    "rates.messages_per_s", U32(limits.rates.messages.per_s), bounds(0, 1_000_000, "messages/s"),
    "Messages that one device sends. What it owes when it leaves, its user's next connection owes.";
    "rates.messages_burst", U32(limits.rates.messages.burst), bounds(1, 1_000_000, "messages"),
    "Messages that may come at once after a pause.";
    "rates.presence_per_s", U32(limits.rates.presence.per_s), bounds(0, 1_000_000, "users/s"),
    "Users that one connection names in PRESENCE_SUB, to be told of.";
    "rates.presence_burst", U32(limits.rates.presence.burst), bounds(1, 1_000_000, "users"),
    "Users that may be named at once after a pause.";
    "rates.signals_per_s", U32(limits.rates.signals.per_s), bounds(0, 1_000_000, "signals/s"),
    "Signals of typing that one connection sends, in all conversations together. In each it is one in \
     two seconds in any case.";
    "rates.signals_burst", U32(limits.rates.signals.burst), bounds(1, 1_000_000, "signals"),
    "Signals that may come at once after a pause.";
    "rates.user_logins_per_s", U32(limits.rates.user_logins.per_s), bounds(0, 1_000_000, "logins/s"),
    "Logins of one user with a valid token, all devices together; more are closed with 4007.";
    "rates.user_logins_burst", U32(limits.rates.user_logins.burst), bounds(1, 1_000_000, "logins"),
    "Logins of a user that may come at once after a pause.";
    "rates.source_opens_per_s", U32(limits.rates.source_opens.per_s), bounds(0, 1_000_000, "connections/s"),
    "Connections that one source opens: an IPv4 address, or a /64 of IPv6. More are closed at once \
     and without a word. The defaults leave room for thousands of phones behind one address. The \
     shards share it evenly, and take 8 at once at least.";
    "rates.source_opens_burst", U32(limits.rates.source_opens.burst), bounds(1, 1_000_000, "connections"),
    "Connections that a source may open at once after a pause.";
    "rates.source_greeting_max", U32(limits.rates.source_greeting_max), bounds(0, 1 << 24, "connections"),
    "Connections of one source that have not logged in, at a time; more are closed at once. The \
     shards share it evenly.";
    "rates.source_logins_per_s", U32(limits.rates.source_logins.per_s), bounds(0, 1_000_000, "logins/s"),
    "HELLOs of one source, whatever comes of them; more are closed with 4007. The shards share it \
     evenly.";
    "rates.source_logins_burst", U32(limits.rates.source_logins.burst), bounds(1, 1_000_000, "logins"),
    "HELLOs of a source that may come at once after a pause.";
    "rates.refusals_max", U16(limits.rates.refusals_max), bounds(0, 65_535, "refusals"),
    "A connection that is refused more often than this within refusals_window_s is closed with 4007. \
     A client that heeds what it is told stays below 700 with the other defaults. 0 is never.";
    "rates.refusals_window_s", U16(limits.rates.refusals_window_s), bounds(1, 3_600, "s"),
    "The time in which they are counted, and for which who was closed is told to stay away.";
    "rates.table_max", Usize(limits.rates.table_max), bounds(8, 1 << 24, "entries"),
    "Sources that one shard knows at a time, and as many users. Fixed memory, 40 bytes for each. In a \
     full set of 8 the one that has used up least is forgotten.";

    "store.retention_days", U32(store.retention_days), bounds(1, 36_500, "days"),
    "Messages are kept this long, then dropped by whole months. A device that was away longer is \
     told that there is a gap.";

    "store.commands_max", Usize(store.commands_max), bounds(16, 1 << 24, "commands"),
    "Commands the store takes before it gives batches back; of reads and of writes each.";
    "store.bytes_max", Usize(store.bytes_max), bounds(1 << 20, 64 * GIB, "bytes"),
    "Like commands_max, by the memory that the commands hold.";
    "store.readers", Usize(store.readers), bounds(1, 64, "threads"),
    "Threads of the embedded store that serve reads: replays after reconnects.";
    "store.cache_bytes", U64(store.cache_bytes), bounds(1 << 20, 1024 * GIB, "bytes"),
    "Memory in which the embedded store keeps what was read last.";
    "store.open_files_max", Usize(store.open_files_max), bounds(64, 65_536, "files"),
    "Files that the embedded store keeps open. They count against the limit of open files.";

    "ring.submissions", Power32(ring.submissions), bounds(64, 32_768, "entries"),
    "Requests to the kernel that a shard can hand over in one call. \"auto\" is 1024 up to two shards \
     per CPU and 256 above, where most shards wait at any time.";
    "ring.completions", Power32(ring.completions), bounds(256, 65_536, "entries"),
    "Answers of the kernel that can wait for a shard. Locked memory: 16 bytes each. \"auto\" is 16384 \
     up to two shards per CPU and 4096 above, and not less than submissions.";
    "ring.buffers", Power16(ring.buffers), bounds(8, 32_768, "buffers"),
    "Receive buffers of a shard, lent to connections only while bytes are read. All of them become \
     resident. \"auto\" is 1024 up to two shards per CPU and 256 above.";
    "ring.buffer_bytes", U32(ring.buffer_bytes), bounds(512, 65_536, "bytes"),
    "Size of one of them. Longer frames are put together from several.";

    "drain.spread_ms", U32(drain.spread_ms), bounds(0, 3_600_000, "ms"),
    "On SIGTERM each client waits a random part of this before it leaves. Connections divided by \
     the logins per second that the other gateways can take.";
    "drain.deadline_ms", U32(drain.deadline_ms), bounds(0, 3_600_000, "ms"),
    "Who is still connected then is closed with 4001. Keep it, with flush_ms, below the time that \
     the service manager waits before it kills.";
    "drain.flush_ms", U32(drain.flush_ms), bounds(100, 600_000, "ms"),
    "How long the store may take to finish and close after that.";

    "log.level", Level(log.level), NO_BOUNDS,
    "Least important level that is logged, on standard error. The variable RUST_LOG, with its usual \
     filters, overrides it.";
    "log.format", Format(log.format), NO_BOUNDS,
    "text begins each line with the time, journal leaves that to the journal.";
}
