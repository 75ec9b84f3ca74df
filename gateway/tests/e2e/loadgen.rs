//! The load generator against the built gateway. It is another package's program, so this runs
//! only where `PORTICO_LOADGEN` names it.

use crate::harness::{Child, Gateway, PATIENCE};
use std::{env, fs, process::Command};

#[test]
fn a_short_smoke_run_passes() {
    let Some(program) = env::var_os("PORTICO_LOADGEN") else {
        println!("skipped: PORTICO_LOADGEN does not name a built portico-loadgen");
        return;
    };
    let gateway = Gateway::start();
    let json = gateway.setup().directory().join("smoke.json");
    let mut command = Command::new(program);
    command.args([
        "smoke",
        "--connections",
        "200",
        "--rate",
        "500",
        "--duration",
        "5s",
    ]);
    command.args(["--target", &gateway.listen.to_string()]);
    command.arg("--data").arg(gateway.setup().data());
    command.arg("--json").arg(&json);
    let exit = Child::start(command).wait_for(PATIENCE * 2);
    assert_eq!(exit.code, Some(0), "{}\n{}", exit.out, exit.err);
    let report = fs::read(&json).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["verdict"], "pass");
    for nothing in ["lost", "duplicated", "reordered", "misrouted"] {
        assert_eq!(report[nothing], 0, "{nothing}");
    }
    assert!(report["delivered"].as_u64() > Some(0));
    gateway.still_serves();
}
