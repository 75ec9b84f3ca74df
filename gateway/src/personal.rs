//! `portico user`: what the embedded store holds of one user while no gateway runs, as lines of JSON,
//! or taken out for good.

use crate::{
    Failure, answer,
    cli::{EraseArgs, ExportArgs},
    config::CoreDumps,
    data_dir,
    limits::grouped,
    sealed,
    stored::{FOLDER, next_step},
    unix_s,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use portico_gateway::backend::{
    embedded::personal::{self, Erased, Found, Progress},
    messages::Entry,
};
use portico_wire::ids::{ConvId, UserId};
use serde_json::{Value, json};
use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Instant,
};

pub(crate) fn export(args: ExportArgs) -> Result<(), Failure> {
    sealed::seal(CoreDumps::Never).map_err(Failure::runtime)?;
    let data = data_dir(args.data);
    let user = UserId(args.user);
    let now_us = unix_s()? * 1_000_000;
    let mut out: Box<dyn Write> = match &args.out {
        None => Box::new(BufWriter::new(io::stdout().lock())),
        Some(path) => {
            let mut options = OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600).open(path);
            let file = file.map_err(|error| Failure::Runtime(unwritable(path, &error)))?;
            Box::new(BufWriter::new(file))
        }
    };
    let (mut lines, mut messages) = (0_u64, 0_u64);
    let told = personal::export(&data.join(FOLDER), user, &mut |found| {
        if matches!(&found, Found::Message(entry) if is_over(entry, now_us)) {
            return Ok(());
        }
        lines += 1;
        messages += u64::from(matches!(found, Found::Message(_)));
        serde_json::to_writer(&mut out, &line(user, &found))?;
        out.write_all(b"\n")
    });
    told.map_err(|error| Failure::Runtime(next_step(&error, &data)))?;
    out.flush().map_err(Failure::runtime)?;
    let beside = lines - messages;
    eprintln!(
        "portico: user {user}: {} messages and {} other records",
        grouped(messages),
        grouped(beside)
    );
    Ok(())
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AlreadyExists => format!(
            "{} is there already; name a file that does not exist yet",
            path.display()
        ),
        _ => format!("cannot write {}: {error}", path.display()),
    }
}

/// Its lifetime has passed: nobody may see it any more.
fn is_over(entry: &Entry, now_us: u64) -> bool {
    let ttl_us = u64::from(entry.meta.ttl_s) * 1_000_000;
    ttl_us != 0 && entry.conv_seq.0.saturating_add(ttl_us) < now_us
}

/// Numbers beyond 2^53 are texts, as not every reader of JSON has room for them.
fn line(user: UserId, found: &Found) -> Value {
    match found {
        Found::Message(entry) => {
            let (kind, conv) = conversation(entry.conv, user);
            json!({
                "type": "message",
                "conv_kind": kind,
                "conv": conv,
                "conv_seq": entry.conv_seq.0,
                "user": entry.sender.0.to_string(),
                "device": entry.device.0,
                "msg_id": entry.msg_id.to_string(),
                "op": entry.meta.op,
                "kind": entry.meta.kind,
                "ttl_s": entry.meta.ttl_s,
                "withdrawn": entry.body.is_empty(),
                "body": BASE64_STANDARD.encode(&entry.body),
            })
        }
        Found::Cursor(device, seq) => json!({
            "type": "cursor",
            "device": device.0,
            "seq": seq.0,
        }),
        Found::Mark(conv, water) => {
            let (kind, conv) = conversation(*conv, user);
            json!({
                "type": "watermark",
                "conv_kind": kind,
                "conv": conv,
                "delivered": water.delivered.0,
                "delivered_at_s": water.delivered_at_s,
                "read": water.read.0,
                "read_at_s": water.read_at_s,
            })
        }
        Found::Record {
            table,
            key,
            value,
            version,
        } => json!({
            "type": "record",
            "table": table.0,
            "key": BASE64_STANDARD.encode(key),
            "version": version.0.to_string(),
            "value": BASE64_STANDARD.encode(value),
        }),
    }
}

/// As the user names it.
fn conversation(conv: ConvId, user: UserId) -> (&'static str, String) {
    match conv {
        ConvId::Direct(low, _) => {
            let peer = conv.peer_of(user).unwrap_or(low);
            ("direct", peer.0.to_string())
        }
        ConvId::Group(group) => ("group", group.0.to_string()),
        ConvId::Status(author) => ("status", author.0.to_string()),
    }
}

pub(crate) fn erase(args: EraseArgs) -> Result<(), Failure> {
    sealed::seal(CoreDumps::Never).map_err(Failure::runtime)?;
    let data = data_dir(args.data);
    if !args.yes {
        return Err(Failure::Use(format!(
            "this takes what user {} has said out of {} for good; say --yes to do it \
             (`portico user export` keeps a copy)",
            args.user,
            data.display()
        )));
    }
    let begun = Instant::now();
    let erased =
        personal::erase(
            &data.join(FOLDER),
            UserId(args.user),
            &mut |progress| match progress {
                Progress::Looked(entries) => {
                    eprintln!("portico: {} entries looked at", grouped(entries));
                }
                Progress::Compacting { done, of } => {
                    eprintln!("portico: rewriting, {} of {of}", done + 1);
                }
            },
        );
    let erased = erased.map_err(|error| Failure::Runtime(next_step(&error, &data)))?;
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        let mut report = serde_json::to_value(erased).map_err(Failure::runtime)?;
        report["user"] = args.user.to_string().into();
        report["seconds"] = ((seconds * 1_000.0).round() / 1_000.0).into();
        return answer(&format!("{report}\n"));
    }
    answer(&told(args.user, &erased, seconds))
}

fn told(user: u64, erased: &Erased, seconds: f64) -> String {
    format!(
        "User {user} is erased: the bodies of {} entries with {} bytes, {} inbox references, \
         {} cursors, {} watermarks and {} records; {} entries were looked at in {seconds:.1} s.\n\
         What stays: that these entries were written, when, and by which user and device. Their \
         devices are not locked out: portico device revoke --user {user}\n",
        grouped(erased.bodies),
        grouped(erased.body_bytes),
        grouped(erased.references),
        grouped(erased.cursors),
        grouped(erased.watermarks),
        grouped(erased.records),
        grouped(erased.entries_looked_at),
    )
}
