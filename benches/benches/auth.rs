//! What it costs to judge a login: a signature, or a MAC, and beside it what is looked up.

use criterion::{Criterion, criterion_group, criterion_main};
use portico_client::mint::SigningKey;
use portico_core::{Credentials, Grant};
use portico_gateway::{
    Authenticator, JwtAuthenticator, JwtOptions, Revocations,
    backend::{Limits, memory},
};
use portico_wire::ids::{DeviceId, UserId};
use std::{fs, hint::black_box, path::Path, sync::Arc};

const NOW: u64 = 1_790_000_000;
const TTL_S: u64 = 3_600;
/// Devices that were revoked in the life of a token.
const REVOKED: u64 = 10_000;

struct Bench {
    auth: JwtAuthenticator,
    access: Credentials,
    resume: Credentials,
}

impl Bench {
    fn new(auth: JwtAuthenticator, data: &Path) -> Self {
        let pem = fs::read_to_string(data.join("auth-key.pem")).expect("the key");
        let key = SigningKey::from_pem(&pem).expect("a key");
        let token = key.token(UserId(77_777_777), DeviceId(1), 0, TTL_S, NOW);
        let access = Credentials {
            token: Some(token),
            resume_token: None,
            device: DeviceId(0),
        };
        let grant = auth.authenticate(&access, NOW).expect("a good token");
        let resume = Credentials {
            token: None,
            resume_token: Some(grant.resume_token),
            device: DeviceId(0),
        };
        Self {
            auth,
            access,
            resume,
        }
    }

    fn judge(&self, credentials: &Credentials) -> Grant {
        let grant = self.auth.authenticate(black_box(credentials), NOW);
        grant.expect("it was good before")
    }
}

fn auth(c: &mut Criterion) {
    let data = tempfile::tempdir().expect("a directory");
    let open = || JwtAuthenticator::open(data.path(), &JwtOptions::default()).expect("keys");
    let plain = Bench::new(open(), data.path());
    let records = memory::Store::new().records(Limits::default());
    let revocations = Revocations::open(records, 10 * TTL_S, NOW).expect("an empty store");
    for user in 1..=REVOKED {
        let done = revocations.revoke(UserId(user), Some(DeviceId(1)), NOW);
        done.expect("the store takes it");
    }
    let auth = open().with_revocations(Arc::new(revocations));
    let revoked = Bench::new(auth, data.path());

    let mut group = c.benchmark_group("login");
    for (bench, beside) in [(&plain, "nothing"), (&revoked, "10,000")] {
        group.bench_function(format!("access token, {beside} revoked"), |b| {
            b.iter(|| bench.judge(&bench.access));
        });
        group.bench_function(format!("resume token, {beside} revoked"), |b| {
            b.iter(|| bench.judge(&bench.resume));
        });
    }
    group.finish();
}

criterion_group!(benches, auth);
criterion_main!(benches);
