//! Every table that is a body, described once: how to build it with each field set to a value of
//! its own, and what reading it back must give. A field added to the schema does not compile until
//! it has a value here.

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use portico_wire::fb;

/// A field of the builder's arguments, by the kind of its value.
macro_rules! put {
    ($b:ident, num, $value:expr) => {
        $value
    };
    ($b:ident, text, $value:expr) => {
        Some($b.create_string($value))
    };
    ($b:ident, text_required, $value:expr) => {
        Some($b.create_string($value))
    };
    ($b:ident, bytes, $value:expr) => {
        Some($b.create_vector::<u8>($value))
    };
    ($b:ident, bytes_required, $value:expr) => {
        Some($b.create_vector::<u8>($value))
    };
    ($b:ident, list, $value:expr) => {
        Some($b.create_vector(&$value))
    };
    ($b:ident, structs, $value:expr) => {
        Some($b.create_vector(&$value))
    };
    ($b:ident, one, $value:expr) => {
        Some(&$value)
    };
    ($b:ident, texts, $value:expr) => {{
        let texts = $value.map(|text| $b.create_string(text));
        Some($b.create_vector(&texts))
    }};
    ($b:ident, table, $module:ident) => {
        Some($module::build($b))
    };
    ($b:ident, tables, $module:ident) => {{
        let tables = [$module::build($b), $module::build($b)];
        Some($b.create_vector(&tables))
    }};
}

/// What the accessor must give for the same value.
macro_rules! expect {
    ($got:expr, num, $value:expr) => {
        assert_eq!($got, $value)
    };
    ($got:expr, text, $value:expr) => {
        assert_eq!($got, Some($value))
    };
    ($got:expr, text_required, $value:expr) => {
        assert_eq!($got, $value)
    };
    ($got:expr, bytes, $value:expr) => {
        assert_eq!($got.map(|bytes| bytes.bytes()), Some($value.as_slice()))
    };
    ($got:expr, bytes_required, $value:expr) => {
        assert_eq!($got.bytes(), $value.as_slice())
    };
    ($got:expr, list, $value:expr) => {
        assert_eq!(
            $got.map(|list| list.iter().collect()),
            Some($value.to_vec())
        )
    };
    ($got:expr, structs, $value:expr) => {
        assert_eq!(
            $got.map(|list| list.iter().copied().collect()),
            Some($value.to_vec())
        )
    };
    ($got:expr, one, $value:expr) => {
        assert_eq!($got, Some(&$value))
    };
    ($got:expr, texts, $value:expr) => {
        assert_eq!(
            $got.map(|list| list.iter().collect()),
            Some($value.to_vec())
        )
    };
    ($got:expr, table, $module:ident) => {
        $module::check($got.expect("the table is present"))
    };
    ($got:expr, tables, $module:ident) => {{
        let list = $got.expect("the list is present");
        assert_eq!(list.len(), 2);
        list.iter().for_each($module::check);
    }};
}

macro_rules! tables {
    ($($module:ident = $Table:ident / $Args:ident { $($field:ident: $kind:ident($($value:tt)+)),+ $(,)? })+) => {
        $(pub(crate) mod $module {
            use super::*;

            pub(crate) fn build<'b>(b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::$Table<'b>> {
                $(let $field = put!(b, $kind, $($value)+);)+
                fb::$Table::create(b, &fb::$Args { $($field),+ })
            }

            pub(crate) fn check(table: fb::$Table<'_>) {
                $(expect!(table.$field(), $kind, $($value)+);)+
            }
        })+
    };
}

/// Sixteen different bytes, starting with `first`.
pub(crate) fn id(first: u8) -> fb::Id128 {
    let bytes: [u8; 16] = std::array::from_fn(|i| first + i as u8);
    let n = u128::from_be_bytes(bytes);
    fb::Id128::new((n >> 64) as u64, n as u64)
}

fn slot(user: u64, offset: u32, length: u32, device: u16) -> fb::DeviceSlot {
    fb::DeviceSlot::new(user, offset, length, device, 0, 0)
}

fn device_ref(user: u64, device: u16) -> fb::DeviceRef {
    fb::DeviceRef::new(user, device, 0, 0)
}

fn member(user: u64, joined_s: u32, role: fb::Role) -> fb::Member {
    fb::Member::new(user, joined_s, role.0, 0, 0)
}

fn presence_item(user: u64, last_seen_s: u32, state: fb::PresenceState) -> fb::PresenceItem {
    fb::PresenceItem::new(user, last_seen_s, state.0, 0, 0)
}

fn conv_ref(conv: u64, kind: fb::ConvKind) -> fb::ConvRef {
    fb::ConvRef::new(conv, kind.0, 0, 0, 0)
}

fn message_ref(first: u8, user: u64, device: u16) -> fb::MessageRef {
    fb::MessageRef::new(&id(first), user, device, 0, 0)
}

/// A user whose eight bytes all differ.
pub(crate) const USER: u64 = 0x1817_1615_1413_1211;
pub(crate) const OTHER: u64 = 0x2827_2625_2423_2221;
/// A group, likewise.
pub(crate) const GROUP: u64 = 0x3837_3635_3433_3231;
/// A sequence number, likewise, and below 2^53.
pub(crate) const SEQ: u64 = 0x0006_5544_3322_1100;
/// Unix seconds whose four bytes differ.
const AT_S: u32 = 0x6a55_4433;

tables! {
    hello = Hello / HelloArgs {
        min_version: num(1),
        max_version: num(2),
        token: text("access.token.text"),
        device: num(0x0302),
        resume_token: bytes(b"resume"),
        last_seq: num(SEQ),
        receive_max: num(0x0000_0403),
        features: num(fb::Feature::COMPRESS_ZSTD | fb::Feature::STATUS),
        state: num(fb::ClientState::AWAY),
        client: text("golden/1.0 test"),
    }
    welcome = Welcome / WelcomeArgs {
        version: num(2),
        user: num(USER),
        device: num(0x0302),
        resumed: num(true),
        resume_token: bytes(b"next resume"),
        resume_ttl_s: num(86_400),
        auth_ttl_s: num(3_600),
        head_seq: num(SEQ + 2),
        floor_seq: num(SEQ + 1),
        receive_max: num(128),
        max_frame: num(65_536),
        heartbeat_s: num(61),
        heartbeat_min_s: num(31),
        heartbeat_max_s: num(301),
        features: num(fb::Feature::CALLS),
        server_us: num(SEQ + 3),
        node: text("node-1"),
        reconnect_spread_ms: num(17_000),
    }
    error_reply = ErrorReply / ErrorReplyArgs {
        code: num(fb::ErrorCode::CLOCK_AHEAD),
        retry_after_ms: num(1_500),
        detail: text("dated ahead"),
        op: num(fb::Op::SEND),
        server_us: num(SEQ),
    }
    close = Close / CloseArgs {
        code: num(fb::CloseCode::MOVED),
        retry_after_ms: num(2_500),
        detail: text("moved"),
        endpoint: text("gateway.example:7400"),
    }
    drain = Drain / DrainArgs {
        spread_ms: num(50_000),
        deadline_ms: num(60_000),
        endpoints: texts(["a.example:7400", "b.example:7400"]),
    }
    reauth = Reauth / ReauthArgs { token: text_required("fresh.access.token") }
    reg_start = RegStart / RegStartArgs {
        session: one(id(0x10)),
        phone: text_required("+15550100"),
        channel: num(fb::RegChannel::VOICE),
        challenge: text("proof"),
    }
    reg_confirm = RegConfirm / RegConfirmArgs {
        session: one(id(0x10)),
        code: text_required("123456"),
        device_name: bytes(b"sealed name"),
        platform: text("linux"),
    }
    tokens = Tokens / TokensArgs {
        user: num(USER),
        device: num(0x0302),
        access: text("access"),
        refresh: text("refresh"),
        expires_s: num(900),
    }
    token_refresh = TokenRefresh / TokenRefreshArgs { refresh: text_required("refresh") }

    envelope = Envelope / EnvelopeArgs {
        cipher: num(fb::CipherType::SENDER_KEY),
        body: bytes(b"ciphertext"),
        packing: num(fb::Packing::DEFLATE),
        key_id: bytes(b"key-7"),
    }
    media_ref = MediaRef / MediaRefArgs { object: text_required("object-1"), size: num(1_000_000) }
    message = Message / MessageArgs {
        common: bytes(b"for all"),
        slots: structs([slot(USER, 0, 3, 1), slot(USER, 3, 4, 2), slot(OTHER, 7, 2, 1)]),
        blob: bytes(b"abcdefghi"),
        self_epoch: num(0x0807_0605_0403_0201),
        push_hint: bytes(b"hint"),
        mentions: list([USER, OTHER]),
        audience: list([OTHER]),
        media: tables(media_ref),
        audience_mode: num(fb::AudienceMode::ONLY),
    }
    revoke = Revoke / RevokeArgs {
        target_seq: num(SEQ),
        target_id: one(id(0x20)),
        target_user: num(USER),
        target_device: num(0x0302),
    }
    devices_stale = DevicesStale / DevicesStaleArgs {
        epoch: num(7),
        self_epoch: num(8),
        missing: structs([device_ref(USER, 0x0302)]),
        extra: structs([device_ref(OTHER, 0x0504), device_ref(OTHER, 0x0605)]),
    }
    receipts_get = ReceiptsGet / ReceiptsGetArgs {
        convs: structs([conv_ref(OTHER, fb::ConvKind::DIRECT), conv_ref(GROUP, fb::ConvKind::GROUP)]),
        members: num(true),
    }
    history_get = HistoryGet / HistoryGetArgs {
        conv_kind: num(fb::ConvKind::GROUP),
        conv: num(GROUP),
        before: num(SEQ + 9),
        after: num(SEQ),
        limit: num(100),
        forward: num(true),
    }
    history_end = HistoryEnd / HistoryEndArgs { more: num(true), next: num(SEQ) }
    conversations_get = ConversationsGet / ConversationsGetArgs { before: num(SEQ), limit: num(20) }
    conversation = Conversation / ConversationArgs {
        conv_kind: num(fb::ConvKind::DIRECT),
        conv: num(OTHER),
        head_seq: num(SEQ + 1),
        read_seq: num(SEQ),
        unread: num(12),
    }

    presence_sub = PresenceSub / PresenceSubArgs {
        add: list([USER, OTHER]),
        remove: list([GROUP]),
    }
    presence = Presence / PresenceArgs {
        items: structs([
            presence_item(USER, 0, fb::PresenceState::ONLINE),
            presence_item(OTHER, AT_S, fb::PresenceState::OFFLINE)
        ]),
    }

    group_create = GroupCreate / GroupCreateArgs {
        members: list([USER, OTHER]),
        title: text("title"),
        sealed_info: bytes(b"sealed info"),
        rules: num(fb::GroupRules::ADMINS_SEND | fb::GroupRules::ADMINS_EDIT_INFO),
        max_members: num(512),
        group_type: num(3),
    }
    group_edit = GroupEdit / GroupEditArgs {
        action: num(fb::GroupAction::SET_ROLE),
        members: structs([member(OTHER, AT_S, fb::Role::ADMIN)]),
        title: text("new title"),
        sealed_info: bytes(b"new info"),
        rules: num(fb::GroupRules::ADMINS_ADD),
        invite: text("invite-code"),
    }
    group_get = GroupGet / GroupGetArgs { group: num(GROUP), known_epoch: num(6) }
    group = Group / GroupArgs {
        group: num(GROUP),
        epoch: num(7),
        members: structs([member(USER, AT_S, fb::Role::OWNER), member(OTHER, AT_S, fb::Role::MEMBER)]),
        title: text("title"),
        sealed_info: bytes(b"sealed info"),
        rules: num(fb::GroupRules::ADMINS_SEND),
        created_s: num(AT_S),
        created_by: num(USER),
        max_members: num(512),
        group_type: num(3),
        invite: text("invite-code"),
    }
    group_event = GroupEvent / GroupEventArgs {
        epoch: num(8),
        action: num(fb::GroupAction::ADD),
        members: structs([member(OTHER, AT_S, fb::Role::MEMBER)]),
        title: text("title"),
        sealed_info: bytes(b"sealed info"),
        rules: num(fb::GroupRules::ADMINS_ADD),
        max_members: num(1_024),
        group_type: num(3),
        has_invite: num(true),
    }

    one_time_key = OneTimeKey / OneTimeKeyArgs {
        id: num(0x0403_0201),
        public_key: bytes(b"one-time key"),
        signature: bytes(b"its signature"),
    }
    signed_key = SignedKey / SignedKeyArgs {
        id: num(0x0807_0605),
        public_key: bytes_required(b"signed key"),
        signature: bytes_required(b"a signature"),
        created_s: num(AT_S),
    }
    keys_upload = KeysUpload / KeysUploadArgs {
        suite: num(fb::KeySuite::OLM_25519),
        identity: bytes(b"identity key"),
        signing: bytes(b"signing key"),
        signed_prekey: table(signed_key),
        last_resort: table(signed_key),
        one_time: tables(one_time_key),
        signed_list: bytes(b"signed list"),
    }
    keys_fetch = KeysFetch / KeysFetchArgs {
        suite: num(fb::KeySuite::OLM_25519),
        users: list([USER, OTHER]),
        devices: structs([device_ref(OTHER, 0x0302)]),
        consume: num(false),
    }
    key_bundle = KeyBundle / KeyBundleArgs {
        device: num(0x0302),
        identity: bytes(b"identity key"),
        signing: bytes(b"signing key"),
        signed_prekey: table(signed_key),
        one_time: table(one_time_key),
        last_resort: table(signed_key),
    }
    key_bundles = KeyBundles / KeyBundlesArgs {
        user: num(OTHER),
        epoch: num(7),
        signed_list: bytes(b"signed list"),
        bundles: tables(key_bundle),
    }
    keys_low = KeysLow / KeysLowArgs {
        suite: num(fb::KeySuite::OLM_25519),
        left: num(19),
        signed_age_s: num(700_000),
    }
    devices_get = DevicesGet / DevicesGetArgs { users: list([USER, OTHER]) }
    device = Device / DeviceArgs {
        device: num(0x0302),
        name: bytes(b"sealed name"),
        platform: text("linux"),
        created_s: num(AT_S),
        last_seen_s: num(AT_S + 60),
        identity: bytes(b"identity key"),
    }
    devices = Devices / DevicesArgs {
        user: num(USER),
        epoch: num(7),
        devices: tables(device),
        signed_list: bytes(b"signed list"),
    }
    device_link = DeviceLink / DeviceLinkArgs {
        step: num(fb::LinkStep::APPROVE),
        link_id: one(id(0x30)),
        sealed: bytes(b"sealed for the new device"),
    }
    device_revoke = DeviceRevoke / DeviceRevokeArgs {
        device: num(0x0302),
        signed_list: bytes(b"signed list"),
    }
    devices_changed = DevicesChanged / DevicesChangedArgs {
        epoch: num(8),
        added: list([0x0302_u16, 0x0504]),
        removed: list([0x0706_u16]),
    }
    device_rename = DeviceRename / DeviceRenameArgs {
        device: num(0x0302),
        name: bytes(b"sealed new name"),
    }
    identity_log_get = IdentityLogGet / IdentityLogGetArgs {
        user: num(USER),
        after: num(3),
        limit: num(50),
    }
    identity_entry = IdentityEntry / IdentityEntryArgs {
        number: num(4),
        device: num(0x0302),
        identity: bytes(b"identity key"),
        at_s: num(AT_S),
        hash: bytes(b"hash of the chain"),
    }
    identity_log = IdentityLog / IdentityLogArgs {
        user: num(USER),
        entries: tables(identity_entry),
        more: num(true),
    }

    upload_open = UploadOpen / UploadOpenArgs {
        upload_key: one(id(0x40)),
        kind: num(fb::MediaKind::VIDEO),
        size: num(1_000_000),
        sha256: bytes(b"32 bytes of a sha-256 would be !"),
        content_type: text("video/mp4"),
        variant: num(fb::Variant::PREVIEW),
        parent: text("object-0"),
        first_part: num(3),
    }
    part = Part / PartArgs { number: num(3), url: text("https://media.example/3") }
    upload_ticket = UploadTicket / UploadTicketArgs {
        object: text("object-1"),
        exists: num(true),
        url: text("https://media.example/1"),
        parts: tables(part),
        part_size: num(5_242_880),
        headers: texts(["content-type: video/mp4", "x-checksum: 1"]),
        expires_s: num(900),
    }
    upload_done = UploadDone / UploadDoneArgs {
        object: text_required("object-1"),
        etags: texts(["etag-1", "etag-2"]),
    }
    download_open = DownloadOpen / DownloadOpenArgs {
        object: text_required("object-1"),
        variant: num(fb::Variant::THUMBNAIL),
    }
    download_ticket = DownloadTicket / DownloadTicketArgs {
        object: text("object-1"),
        url: text("https://media.example/1"),
        size: num(1_000_000),
        expires_s: num(900),
    }
    media_ready = MediaReady / MediaReadyArgs {
        object: text("object-1"),
        variant: num(fb::Variant::THUMBNAIL),
        error: num(fb::ErrorCode::TOO_LARGE),
    }

    push_set = PushSet / PushSetArgs {
        kind: num(fb::PushKind::WEB_PUSH),
        token: text("https://push.example/1"),
        p256dh: bytes(b"public key"),
        auth: bytes(b"auth secret"),
        topic: text("topic"),
    }
    mute = Mute / MuteArgs {
        conv_kind: num(fb::ConvKind::GROUP),
        conv: num(GROUP),
        until_s: num(AT_S),
        mentions: num(true),
        sound: text("bell"),
    }
    notify_prefs = NotifyPrefs / NotifyPrefsArgs {
        mutes: tables(mute),
        dnd_from_min: num(1_320),
        dnd_to_min: num(420),
        utc_offset_min: num(-90),
        calls_break_dnd: num(true),
        sound: text("chime"),
    }
    contact_edit = ContactEdit / ContactEditArgs {
        user: num(OTHER),
        change: num(fb::ContactChange::BLOCK),
        sealed_name: bytes(b"sealed name"),
    }
    contacts_edit = ContactsEdit / ContactsEditArgs { edits: tables(contact_edit) }
    contacts_get = ContactsGet / ContactsGetArgs {
        after: num(USER),
        limit: num(20),
        blocked: num(true),
    }
    contact = Contact / ContactArgs {
        user: num(OTHER),
        sealed_name: bytes(b"sealed name"),
        added_s: num(AT_S),
        blocked: num(true),
    }
    contacts = Contacts / ContactsArgs { contacts: tables(contact), more: num(true) }
    privacy = Privacy / PrivacyArgs {
        last_seen: num(fb::Who::CONTACTS),
        online: num(fb::Who::NOBODY),
        hide_read: num(true),
        profile: num(fb::Who::CONTACTS),
        group_add: num(fb::Who::NOBODY),
        findable: num(fb::Who::NOBODY),
    }
    profile = Profile / ProfileArgs {
        user: num(USER),
        name: text("name"),
        about: text("about"),
        avatar: text("object-1"),
        created_s: num(AT_S),
    }
    profiles_get = ProfilesGet / ProfilesGetArgs { users: list([USER, OTHER]) }
    users_lookup = UsersLookup / UsersLookupArgs { phones: texts(["+15550100", "+15550101"]) }
    users = Users / UsersArgs { users: list([USER, 0]) }

    call = Call / CallArgs {
        call_id: one(id(0x50)),
        video: num(true),
        end: num(fb::CallEnd::TIMEOUT),
        common: bytes(b"sealed offer"),
        slots: structs([slot(OTHER, 0, 4, 1)]),
        blob: bytes(b"part"),
        push_hint: bytes(b"hint"),
    }
    turn_get = TurnGet / TurnGetArgs { call_id: one(id(0x50)) }
    turn = Turn / TurnArgs {
        urls: texts(["turn:a.example", "turns:b.example"]),
        username: text("1790000000:1"),
        credential: text("credential"),
        ttl_s: num(600),
    }

    sealed_media = SealedMedia / SealedMediaArgs {
        object: text_required("object-1"),
        key: bytes(b"content key"),
        digest: bytes(b"digest"),
        size: num(1_000_000),
        content_type: text("video/mp4"),
        width: num(640),
        height: num(360),
        thumbnail: bytes(b"tiny picture"),
        preview_object: text("object-2"),
        file_name: text("film.mp4"),
        duration_ms: num(30_000),
        kind: num(fb::MediaKind::VIDEO),
        waveform: bytes(b"\x01\x02\x03"),
    }
    content = Content / ContentArgs {
        text: text("hello"),
        reply_to: one(message_ref(0x60, USER, 0x0302)),
        media: tables(sealed_media),
        mentions: list([USER]),
        update: num(fb::UpdateKind::REACTION),
        target: one(message_ref(0x70, OTHER, 0x0504)),
        reaction: text("+1"),
        sync: bytes(b"sync data"),
    }
}
