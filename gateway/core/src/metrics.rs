//! What a shard counts. Plain numbers, bumped where things happen, read by the driver.

macro_rules! counters {
    ($($variant:ident, $name:literal, $labels:literal, $help:literal;)+) => {
        /// One counter. Several share a name and differ in their label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Counter {
            $($variant,)+
        }

        impl Counter {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The metric's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Its label, as `key="value"`, or nothing.
            #[must_use]
            pub const fn labels(self) -> &'static str {
                match self { $(Self::$variant => $labels,)+ }
            }

            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }
        }
    };
}

counters! {
    FramesIn, "portico_frames_received_total", "", "Whole frames from clients.";
    BytesIn, "portico_frame_bytes_received_total", "", "Bytes of whole frames from clients.";
    BytesOut, "portico_frame_bytes_sent_total", "", "Bytes of frames that the kernel took.";
    Opened, "portico_connections_opened_total", "", "Connections accepted.";
    LoggedIn, "portico_logins_total", "", "Sessions that reached WELCOME.";
    Resumed, "portico_logins_resumed_total", "", "Of them, by resume token.";
    LoggedInKnown, "portico_logins_without_read_total", "", "Of them, of devices that were known to have everything.";
    LoginsDeferred, "portico_logins_deferred_total", "", "Logins above the admitted rate, told when to come back.";
    LoginInvalid, "portico_logins_refused_total", "reason=\"invalid\"", "Logins and renewals whose token was refused.";
    LoginUnknownKey, "portico_logins_refused_total", "reason=\"unknown_key\"", "Logins and renewals whose token was refused.";
    LoginWrongAudience, "portico_logins_refused_total", "reason=\"wrong_audience\"", "Logins and renewals whose token was refused.";
    LoginNotYetValid, "portico_logins_refused_total", "reason=\"not_yet_valid\"", "Logins and renewals whose token was refused.";
    LoginLivesTooLong, "portico_logins_refused_total", "reason=\"lives_too_long\"", "Logins and renewals whose token was refused.";
    LoginExpired, "portico_logins_refused_total", "reason=\"expired\"", "Logins and renewals whose token was refused.";
    LoginResumeRefused, "portico_logins_refused_total", "reason=\"resume_token\"", "Logins and renewals whose token was refused.";
    LoginWrongDevice, "portico_logins_refused_total", "reason=\"wrong_device\"", "Logins and renewals whose token was refused.";
    LoginWrongUser, "portico_logins_refused_total", "reason=\"wrong_user\"", "Logins and renewals whose token was refused.";
    LoginRevoked, "portico_logins_refused_total", "reason=\"revoked\"", "Logins and renewals whose token was refused.";
    LoginUnavailable, "portico_logins_refused_total", "reason=\"unavailable\"", "Logins and renewals whose token was refused.";
    RevokedLive, "portico_sessions_revoked_total", "", "Sessions that ended because their device was revoked.";
    Renewed, "portico_logins_renewed_total", "", "Sessions that a REAUTH extended.";
    MovedOut, "portico_handovers_total", "result=\"moved\"", "Logins handed to another shard.";
    MoveFailed, "portico_handovers_total", "result=\"failed\"", "Logins handed to another shard.";
    Accepted, "portico_messages_accepted_total", "", "Messages that got SENT.";
    Duplicates, "portico_messages_duplicate_total", "", "Repeated messages answered with their first position.";
    Delivered, "portico_messages_delivered_total", "path=\"push\"", "Messages written to a device.";
    Replayed, "portico_messages_delivered_total", "path=\"store\"", "Messages written to a device.";
    EphemeralDelivered, "portico_messages_delivered_total", "path=\"ephemeral\"", "Messages written to a device.";
    EphemeralDropped, "portico_ephemeral_dropped_total", "", "Ephemeral frames dropped because a reader was behind.";
    Acknowledged, "portico_messages_acknowledged_total", "", "Messages acknowledged by a device.";
    AckBeyondSent, "portico_acks_beyond_sent_total", "", "ACKs beyond what was sent, cut down.";
    ReceiptsOut, "portico_receipts_sent_total", "", "Receipt frames written to a device.";
    ReceiptsDropped, "portico_receipts_dropped_total", "", "Receipt frames dropped because a reader was behind; the next one makes up for it.";
    GroupRequests, "portico_group_requests_total", "", "Operations on groups that reached the group's home, messages aside.";
    GroupEdits, "portico_group_edits_total", "", "Groups made and edits accepted.";
    GroupMessages, "portico_group_messages_total", "", "Messages and events sent to the members of a group.";
    FanOutsReopened, "portico_fan_outs_reopened_total", "", "Fan-outs under way when the last process ended, and driven again.";
    FanInsRepeated, "portico_fan_ins_repeated_total", "", "Writes of members' references that failed and were made again with fresh numbers.";
    FellBehind, "portico_readers_behind_total", "", "Times a connection went from push to pull.";
    Stalled, "portico_readers_stalled_total", "", "Times a reader took nothing for so long that what was queued for it was taken back.";
    Recalled, "portico_messages_recalled_total", "", "Messages taken back from the queue of such a reader, to be read from the store when it reads on.";
    UnknownOps, "portico_frames_ignored_total", "reason=\"unknown_op\"", "Frames without effect.";
    UnsupportedOps, "portico_frames_ignored_total", "reason=\"unsupported\"", "Frames without effect.";
    UnanswerableSends, "portico_frames_ignored_total", "reason=\"refused_without_request\"", "Frames without effect.";
    MalformedBodies, "portico_requests_refused_total", "reason=\"malformed\"", "Requests answered with an error.";
    RefusedArgument, "portico_requests_refused_total", "reason=\"bad_argument\"", "Requests answered with an error.";
    RefusedUnsupported, "portico_requests_refused_total", "reason=\"unsupported\"", "Requests answered with an error.";
    RefusedTooLarge, "portico_requests_refused_total", "reason=\"too_large\"", "Requests answered with an error.";
    RefusedClock, "portico_requests_refused_total", "reason=\"clock_ahead\"", "Requests answered with an error.";
    RefusedExpired, "portico_requests_refused_total", "reason=\"expired\"", "Requests answered with an error.";
    RefusedNotMember, "portico_requests_refused_total", "reason=\"not_member\"", "Requests answered with an error.";
    RefusedNotFound, "portico_requests_refused_total", "reason=\"not_found\"", "Requests answered with an error.";
    RefusedForbidden, "portico_requests_refused_total", "reason=\"forbidden\"", "Requests answered with an error.";
    RefusedRate, "portico_requests_refused_total", "reason=\"rate_limited\"", "Requests answered with an error.";
    RefusedDenied, "portico_requests_refused_total", "reason=\"denied\"", "Requests answered with an error.";
    RefusedBlocked, "portico_requests_refused_total", "reason=\"blocked\"", "Requests answered with an error.";
    RefusedQuota, "portico_requests_refused_total", "reason=\"quota\"", "Requests answered with an error.";
    RefusedToken, "portico_requests_refused_total", "reason=\"token\"", "Requests answered with an error.";
    RefusedOverload, "portico_requests_refused_total", "reason=\"overloaded\"", "Requests answered with an error.";
    RefusedFull, "portico_requests_refused_total", "reason=\"group_full\"", "Requests answered with an error.";
    RefusedStale, "portico_requests_refused_total", "reason=\"stale_epoch\"", "Requests answered with an error.";
    RefusedStore, "portico_requests_refused_total", "reason=\"store\"", "Requests answered with an error.";
    StoreTimeouts, "portico_requests_refused_total", "reason=\"timeout\"", "Requests answered with an error.";
    LimitedFrames, "portico_rate_limited_total", "limit=\"frames\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    LimitedBytes, "portico_rate_limited_total", "limit=\"bytes\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    LimitedMessages, "portico_rate_limited_total", "limit=\"messages\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    LimitedUserLogins, "portico_rate_limited_total", "limit=\"user_logins\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    LimitedSourceOpens, "portico_rate_limited_total", "limit=\"source_opens\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    LimitedSourceGreeting, "portico_rate_limited_total", "limit=\"source_greeting\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    LimitedSourceLogins, "portico_rate_limited_total", "limit=\"source_logins\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    LimitedSubscriptions, "portico_rate_limited_total", "limit=\"presence\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    LimitedSignals, "portico_rate_limited_total", "limit=\"signals\"", "What exceeded a rate, by the rate: frames that were refused, or let through and counted; logins and connections.";
    HistoryPages, "portico_history_pages_total", "", "Pages of history that went out.";
    HistoryEntries, "portico_history_entries_total", "", "Entries in them.";
    ConversationLists, "portico_conversation_lists_total", "", "Pages of lists of conversations that went out.";
    Withdrawn, "portico_messages_withdrawn_total", "", "Messages whose body a withdrawal took away.";
    BlockedMessages, "portico_blocked_total", "what=\"message\"", "What did not reach a user because of a block.";
    BlockedEphemeral, "portico_blocked_total", "what=\"ephemeral\"", "What did not reach a user because of a block.";
    BlockedSignals, "portico_blocked_total", "what=\"signal\"", "What did not reach a user because of a block.";
    PeopleReads, "portico_restrictions_read_total", "", "Users whose settings and blocks were read from the store.";
    PeopleWaitingFull, "portico_restrictions_overloaded_total", "", "Questions for settings and blocks that failed because too many were waiting for the store.";
    PeopleEdits, "portico_people_edits_total", "", "Edits of contacts, blocks and settings that were made.";
    PresenceSubscribed, "portico_presence_subscribed_total", "", "Users named in subscriptions that were answered.";
    PresenceFrames, "portico_presence_frames_total", "", "Frames of changes written to a device.";
    PresenceTold, "portico_presence_changes_total", "", "Changes in them.";
    PresencePutOff, "portico_presence_put_off_total", "", "Frames of changes put off because a reader was behind; what changes again meanwhile is told once.";
    PresenceWatchesRefused, "portico_presence_refused_total", "", "Subscriptions that are not kept, because too many watch the user or the shard.";
    PresenceSeeksDropped, "portico_last_seen_total", "result=\"not_asked\"", "Times of last seen that were read, written, not asked for because too many were waiting, or lost because the store was not there for them.";
    LastSeenReads, "portico_last_seen_total", "result=\"read\"", "Times of last seen that were read, written, not asked for because too many were waiting, or lost because the store was not there for them.";
    LastSeenWrites, "portico_last_seen_total", "result=\"written\"", "Times of last seen that were read, written, not asked for because too many were waiting, or lost because the store was not there for them.";
    LastSeenLost, "portico_last_seen_total", "result=\"lost\"", "Times of last seen that were read, written, not asked for because too many were waiting, or lost because the store was not there for them.";
    SignalsOut, "portico_signals_total", "result=\"shown\"", "Signals written to a device, or dropped because a reader was behind.";
    SignalsDropped, "portico_signals_total", "result=\"dropped\"", "Signals written to a device, or dropped because a reader was behind.";
    StoreErrors, "portico_store_errors_total", "", "Storage requests that failed.";
    ClosedByPeer, "portico_connections_closed_total", "code=\"peer\"", "Connections that ended.";
    ClosedNormal, "portico_connections_closed_total", "code=\"4000\"", "Connections that ended.";
    ClosedDraining, "portico_connections_closed_total", "code=\"4001\"", "Connections that ended.";
    ClosedIdle, "portico_connections_closed_total", "code=\"4002\"", "Connections that ended.";
    ClosedSlow, "portico_connections_closed_total", "code=\"4003\"", "Connections that ended.";
    ClosedServerError, "portico_connections_closed_total", "code=\"4004\"", "Connections that ended.";
    ClosedOverloaded, "portico_connections_closed_total", "code=\"4005\"", "Connections that ended.";
    ClosedLimited, "portico_connections_closed_total", "code=\"4007\"", "Connections that ended.";
    ClosedResume, "portico_connections_closed_total", "code=\"4010\"", "Connections that ended.";
    ClosedTokenExpired, "portico_connections_closed_total", "code=\"4011\"", "Connections that ended.";
    ClosedProtocol, "portico_connections_closed_total", "code=\"4012\"", "Connections that ended.";
    ClosedTooLarge, "portico_connections_closed_total", "code=\"4013\"", "Connections that ended.";
    ClosedHandshake, "portico_connections_closed_total", "code=\"4014\"", "Connections that ended.";
    ClosedAuth, "portico_connections_closed_total", "code=\"4020\"", "Connections that ended.";
    ClosedRevoked, "portico_connections_closed_total", "code=\"4021\"", "Connections that ended.";
    ClosedVersion, "portico_connections_closed_total", "code=\"4022\"", "Connections that ended.";
    ClosedReplaced, "portico_connections_closed_total", "code=\"4024\"", "Connections that ended.";
}

/// The counters of one shard.
#[derive(Clone, Debug)]
pub struct Counters {
    values: [u64; Counter::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: [0; Counter::COUNT],
        }
    }
}

impl Counters {
    #[must_use]
    pub const fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// All values, in the order of [`Counter::ALL`].
    #[must_use]
    pub const fn values(&self) -> &[u64; Counter::COUNT] {
        &self.values
    }

    pub(crate) const fn add(&mut self, counter: Counter, count: u64) {
        self.values[counter as usize] += count;
    }

    pub(crate) const fn bump(&mut self, counter: Counter) {
        self.add(counter, 1);
    }
}

/// What a shard holds right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub connections: u64,
    pub sessions: u64,
    pub users: u64,
    pub store_requests: u64,
    pub store_bytes: u64,
    pub messages_in_flight: u64,
    pub gates: u64,
    pub unsaved: u64,
    pub outbox_bytes: u64,
    pub pages: u64,
    pub pages_waiting: u64,
    pub groups: u64,
    pub group_bytes: u64,
    pub groups_evicted: u64,
    pub group_ops_waiting: u64,
    pub fan_outs: u64,
    pub fan_ins_waiting: u64,
    pub presence_subscriptions: u64,
    pub presence_interests: u64,
    pub last_seen: u64,
    pub restricted: u64,
    pub restrictions_bytes: u64,
    pub restrictions_waiting: u64,
    pub people_edits: u64,
}

impl Gauges {
    /// How many there are.
    pub const COUNT: usize = 24;

    /// Name, help and value of each.
    #[must_use]
    pub const fn entries(&self) -> [(&'static str, &'static str, u64); Self::COUNT] {
        [
            ("portico_connections", "Open connections.", self.connections),
            ("portico_sessions", "Logged-in connections.", self.sessions),
            ("portico_users", "Users with a session here.", self.users),
            (
                "portico_store_requests_in_flight",
                "Storage requests without an answer yet.",
                self.store_requests,
            ),
            (
                "portico_store_bytes_in_flight",
                "About the memory they hold.",
                self.store_bytes,
            ),
            (
                "portico_messages_in_flight",
                "Messages of this shard's users without a fate yet.",
                self.messages_in_flight,
            ),
            (
                "portico_gates",
                "Searches for a first attempt that hold back later messages.",
                self.gates,
            ),
            (
                "portico_unsaved",
                "Cursors and watermarks waiting to be written.",
                self.unsaved,
            ),
            (
                "portico_outbox_bytes",
                "Bytes queued for clients.",
                self.outbox_bytes,
            ),
            ("portico_pages", "Pages of inboxes being read.", self.pages),
            (
                "portico_pages_waiting",
                "Connections that wait for their turn to read one.",
                self.pages_waiting,
            ),
            (
                "portico_groups",
                "Groups in memory at their homes.",
                self.groups,
            ),
            (
                "portico_group_bytes",
                "About the memory they take.",
                self.group_bytes,
            ),
            (
                "portico_groups_evicted",
                "Groups that made room for others since the start.",
                self.groups_evicted,
            ),
            (
                "portico_group_ops_waiting",
                "Operations that wait for a group to be read, or for an edit of it.",
                self.group_ops_waiting,
            ),
            (
                "portico_fan_outs",
                "Messages of groups on their way to members.",
                self.fan_outs,
            ),
            (
                "portico_fan_ins_waiting",
                "Of messages to members here, those that wait for the store.",
                self.fan_ins_waiting,
            ),
            (
                "portico_presence_subscriptions",
                "Subscriptions of this shard's connections to the presence of others.",
                self.presence_subscriptions,
            ),
            (
                "portico_presence_interests",
                "Users who watch users of this shard, by pairs.",
                self.presence_interests,
            ),
            (
                "portico_last_seen",
                "Users who left, with the time, in memory.",
                self.last_seen,
            ),
            (
                "portico_restricted_users",
                "Users with other settings than the defaults, or with blocks.",
                self.restricted,
            ),
            (
                "portico_restrictions_bytes",
                "Of them, what is cached.",
                self.restrictions_bytes,
            ),
            (
                "portico_restrictions_waiting",
                "What waits until the settings and blocks of a user are read.",
                self.restrictions_waiting,
            ),
            (
                "portico_people_edits",
                "Edits of contacts, blocks and settings under way.",
                self.people_edits,
            ),
        ]
    }
}
