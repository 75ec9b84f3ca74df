//! The shard core alone: the whole life of a direct message without sockets and without a store
//! that takes time. What remains is the gateway's own work.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portico_core::store::{StoreCmd, StoreReply};
use portico_core::{ConnId, Effect, Effects, Grant, Input, Now, Shard, ShardConfig, ShardId, feed};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{self, Encoder},
    frame::ConvKind,
    ids::{DeviceId, MsgId, Seq, UserId},
    message::{Envelope, Hello},
    next_frame,
};

const START_US: u64 = 1_790_000_000_000_000;

/// One shard with two users, and everything around it answered at once.
struct Bench {
    shard: Shard,
    fx: Effects,
    now: Now,
    last_seq: Seq,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            shard: Shard::new(ShardConfig::new(ShardId(0), 1)),
            fx: Effects::default(),
            now: Now {
                mono_us: 1_000_000,
                wall_us: START_US,
            },
            last_seq: Seq(0),
        };
        for index in 0..2 {
            let conn = conn(index);
            bench.handle(Input::Opened { conn });
            let mut hello = Vec::new();
            Encoder::new().hello(&mut hello, 1, &Hello::default());
            bench.receive(conn, &hello);
        }
        bench
    }

    fn handle(&mut self, input: Input<'_>) {
        self.shard.handle(self.now, input, &mut self.fx);
        self.settle();
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        let used = feed(&mut self.shard, self.now, conn, bytes, &mut self.fx);
        assert_eq!(used, bytes.len());
        self.settle();
    }

    /// Carries out effects until there are none.
    fn settle(&mut self) {
        while !self.fx.is_empty() {
            let Effects { list, store, mesh } = std::mem::take(&mut self.fx);
            assert!(mesh.is_empty());
            for request in store {
                let reply = match request.cmd {
                    StoreCmd::Cursors { .. } => StoreReply::Cursors(Vec::new()),
                    StoreCmd::Replay { .. } => StoreReply::Page {
                        items: Vec::new(),
                        more: false,
                    },
                    _ => StoreReply::Done,
                };
                let input = Input::Stored {
                    token: request.token,
                    result: Ok(reply),
                };
                self.shard.handle(self.now, input, &mut self.fx);
            }
            for effect in list {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Output(conn) => {
                let out = self.shard.take_output(conn);
                if conn.index == 1
                    && let Ok(Some(frame)) = next_frame(&out, 65_536)
                    && let Some(route) = frame.route()
                {
                    self.last_seq = self.last_seq.max(route.seq);
                }
                let bytes = out.len();
                self.shard.recycle(out);
                let written = Input::Written { conn, bytes };
                self.shard.handle(self.now, written, &mut self.fx);
            }
            Effect::Authenticate { conn, .. } => {
                let grant = Grant {
                    user: UserId(u64::from(conn.index) + 1),
                    device: DeviceId(1),
                    resumed: false,
                    resume_token: Vec::new(),
                    resume_ttl_s: 0,
                };
                let result = Ok(grant);
                let input = Input::Authenticated { conn, result };
                self.shard.handle(self.now, input, &mut self.fx);
            }
            Effect::Resume(_) => {}
            Effect::Close { .. } | Effect::Move { .. } => panic!("the bench keeps its connections"),
        }
    }
}

fn conn(index: u32) -> ConnId {
    ConnId {
        index,
        generation: 1,
    }
}

fn send_frame(corr: u32, flags: Flags) -> Vec<u8> {
    let body = [0x5a; 128];
    let envelope = Envelope {
        body: &body,
        ..Envelope::default()
    };
    let route = RouteHeader {
        msg_id: MsgId::new_v7(START_US / 1_000, u128::from(corr)),
        conv: 2,
        conv_kind: ConvKind::DIRECT,
        ..RouteHeader::default()
    };
    let mut out = Vec::new();
    let body = Encoder::new().envelope(&envelope).to_vec();
    encode::put_routed(&mut out, Op::Send as u8, flags, corr, 0, &route, &body);
    out
}

fn shard(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard");
    group.throughput(Throughput::Elements(1));
    let mut bench = Bench::new();
    let send = send_frame(7, Flags::NONE);
    let mut ack = Vec::new();
    let mut count = 0_u32;
    group.bench_function("SEND to SENT and DELIVER, an ACK per 32", |b| {
        b.iter(|| {
            bench.now.mono_us += 10;
            bench.now.wall_us += 10;
            bench.receive(conn(0), &send);
            count += 1;
            if count.is_multiple_of(32) {
                ack.clear();
                encode::put_ack(&mut ack, bench.last_seq, 256);
                bench.receive(conn(1), &ack);
            }
        });
    });
    let mut bench = Bench::new();
    let send = send_frame(0, Flags::EPHEMERAL);
    group.bench_function("an ephemeral message, relayed", |b| {
        b.iter(|| bench.receive(conn(0), &send));
    });
    let mut bench = Bench::new();
    let mut ping = Vec::new();
    encode::put_ping(&mut ping, 0, 60);
    group.bench_function("PING to PONG", |b| b.iter(|| bench.receive(conn(0), &ping)));
    group.finish();
}

criterion_group!(benches, shard);
criterion_main!(benches);
