//! The fuzz target `shard` over its committed corpus, on a stable compiler.

// The fuzz crate exports it.
#[allow(unreachable_pub)]
#[path = "../../../fuzz/src/shard.rs"]
mod target;

use std::{fs, panic, path::Path};

#[test]
fn shard_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/shard");
    let mut stories = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is committed") {
        let path = entry.expect("the folder can be read").path();
        let story = fs::read(&path).expect("a seed can be read");
        let result = panic::catch_unwind(|| target::shard(&story));
        assert!(result.is_ok(), "{} fails", path.display());
        stories += 1;
    }
    assert!(stories > 0, "{} is empty", folder.display());
}
