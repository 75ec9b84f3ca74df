//! The fuzz targets over their committed corpus, on a stable compiler. Part of the corpus are seeds
//! made from the golden bytes; the rest is what a fuzzer once found, and stays.

use crate::{
    blessing, fuzz_targets, in_repository,
    samples::{self, EXAMPLE_TEXT},
};
use portico_wire::{encode::Encoder, limits::FRAME_BYTES_CEILING, next_frame};
use std::{collections::BTreeMap, fs, panic};

type Corpus = BTreeMap<String, Vec<u8>>;

/// Every file of a target's corpus; none at all is a failure.
fn corpus(target: &str) -> Corpus {
    let folder = in_repository("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).expect("the corpus is committed");
    let corpus: Corpus = entries
        .map(|entry| {
            let entry = entry.expect("the folder can be read");
            let bytes = fs::read(entry.path()).expect("a seed can be read");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    assert!(!corpus.is_empty(), "{} is empty", folder.display());
    corpus
}

/// Seeds that follow from the golden bytes are there as they should be; a blessing writes them.
fn hold_seeds(target: &str, seeds: &Corpus) {
    let folder = in_repository("fuzz/corpus").join(target);
    if blessing() {
        fs::create_dir_all(&folder).expect("the corpus folder can be made");
        for (name, bytes) in seeds {
            fs::write(folder.join(name), bytes).expect("a seed can be written");
        }
    }
    let committed = corpus(target);
    for (name, bytes) in seeds {
        assert_eq!(committed.get(name), Some(bytes), "seed {target}/{name}");
    }
}

fn replay(target: &str, run: fn(&[u8])) {
    for (name, bytes) in corpus(target) {
        let result = panic::catch_unwind(|| run(&bytes));
        assert!(result.is_ok(), "fuzz/corpus/{target}/{name} fails");
    }
}

#[test]
fn frame_corpus() {
    let mut seeds = Corpus::new();
    let samples = samples::all();
    let stream: Vec<u8> = samples.iter().flat_map(|s| s.bytes.clone()).collect();
    seeds.insert("golden-stream".to_owned(), stream);
    let story = samples::example().into_iter().flat_map(|(_, bytes)| bytes);
    seeds.insert("golden-example".to_owned(), story.collect());
    for sample in samples {
        let short = ["HELLO", "SEND", "ACK", "CLOSE.minimal"].contains(&sample.name.as_str());
        if short {
            let cut = sample.bytes[..sample.bytes.len() - 1].to_vec();
            seeds.insert(format!("cut-{}", sample.name), cut);
        }
    }
    for bad in samples::bad_frames() {
        seeds.insert(format!("bad-{}", bad.name), bad.bytes);
    }
    hold_seeds("frame", &seeds);
    replay("frame", fuzz_targets::frame);
}

#[test]
fn bodies_corpus() {
    let mut seeds = Corpus::new();
    for sample in samples::all() {
        let frame = next_frame(&sample.bytes, FRAME_BYTES_CEILING);
        let body = frame.expect("valid").expect("whole").body();
        if !body.is_empty() {
            let name = format!("golden-{}", sample.name);
            seeds.insert(name, [&[sample.op as u8], body].concat());
        }
    }
    let mut encoder = Encoder::new();
    let content = encoder.body(crate::tables::content::build);
    let plaintext = [&[fuzz_targets::PLAINTEXT], content].concat();
    seeds.insert("golden-plaintext".to_owned(), plaintext);
    hold_seeds("bodies", &seeds);
    replay("bodies", fuzz_targets::bodies);
}

/// The `session` target is about another crate, so its stories are not replayed here. Their seeds
/// are made here all the same, where the golden bytes are.
#[test]
fn session_seeds() {
    const SEND: u8 = 2;
    const ACKNOWLEDGE: u8 = 5;
    const RECONNECT: u8 = 6;
    const TEN_SECONDS: u8 = 1 | 1 << 3;
    let example: BTreeMap<_, _> = samples::example().into_iter().collect();
    // To user 1, from user 2, as the target's session expects it.
    let mut deliver = example["bob < DELIVER"].clone();
    deliver[40] = 2;
    deliver[56] = 2;
    let login = [&example["alice < WELCOME"][..], &example["alice < SYNCED"]].concat();
    let mut sent = example["alice < SENT"].clone();
    sent[8] = 2;
    let say = |bytes: &[u8], chunk: u8| {
        let length = u16::try_from(bytes.len()).expect("short").to_le_bytes();
        [&[7 | chunk << 3], &length[..], bytes].concat()
    };
    let login_in_pieces = say(&login, 5);
    let login = say(&login, 0);
    let seeds: Corpus = [
        ("golden-login", login.clone()),
        ("golden-login-in-pieces", login_in_pieces),
        (
            "golden-send",
            [&login, &[SEND][..], &say(&sent, 0)].concat(),
        ),
        (
            "golden-deliver",
            [&login, &say(&deliver, 0)[..], &[ACKNOWLEDGE, TEN_SECONDS]].concat(),
        ),
        (
            "golden-again",
            [&login, &[SEND, RECONNECT][..], &login, &say(&sent, 3)].concat(),
        ),
        (
            "golden-close",
            [
                &login,
                &say(&example["alice > CLOSE"], 0)[..],
                &[TEN_SECONDS],
            ]
            .concat(),
        ),
        (
            "golden-receipt",
            [&login, &say(&example["alice < RECEIPT read"], 0)[..]].concat(),
        ),
        (
            "golden-error",
            [&login, &[SEND][..], &say(&example["alice < ERROR"], 0)].concat(),
        ),
        ("golden-silence", [&login, &[TEN_SECONDS; 9][..]].concat()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    hold_seeds("session", &seeds);
}

/// The replay would notice: a target that fails for a seed is seen to fail.
#[test]
#[should_panic(expected = "the canary was found")]
fn canary() {
    fuzz_targets::canary(EXAMPLE_TEXT.as_bytes());
    fuzz_targets::canary(b"PTC1");
}
