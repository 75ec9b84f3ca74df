//! Bad input gets a clear answer and costs nothing else: an error or close code or a start-up
//! message, a counter, and a gateway that serves the next client as if nothing had been.

mod damage;
mod disk;
mod frames;
mod half_open;
mod login;
mod overload;
mod requests;
mod resets;
mod slow;
mod start;

use crate::harness::{Gateway, PATIENCE, close_code};
use portico_client::RawConnection;
use portico_wire::CloseCode;

/// What a connection that has not logged in says is answered with a CLOSE, and the connection ends.
fn is_closed(gateway: &Gateway, series: &'static str, code: CloseCode, bytes: &[u8]) {
    let closed = gateway.watch(series);
    let mut conn = gateway.connect();
    conn.write_bytes(bytes).expect("the socket takes it");
    assert_eq!(ended_with(&mut conn), code);
    closed.moves_by(1);
    gateway.still_serves();
}

fn ended_with(conn: &mut RawConnection) -> CloseCode {
    let code = close_code(conn.expect_close(PATIENCE));
    conn.expect_end(PATIENCE).expect("an end after CLOSE");
    code
}

const CLOSED_BY_PEER: &str = r#"portico_connections_closed_total{code="peer"}"#;
const CLOSED_IDLE: &str = r#"portico_connections_closed_total{code="4002"}"#;
const CLOSED_REPLACED: &str = r#"portico_connections_closed_total{code="4024"}"#;
const CLOSED_PROTOCOL: &str = r#"portico_connections_closed_total{code="4012"}"#;
const CLOSED_TOO_LARGE: &str = r#"portico_connections_closed_total{code="4013"}"#;
const CLOSED_HANDSHAKE: &str = r#"portico_connections_closed_total{code="4014"}"#;
const CLOSED_AUTH: &str = r#"portico_connections_closed_total{code="4020"}"#;
const CLOSED_EXPIRED: &str = r#"portico_connections_closed_total{code="4011"}"#;
const CLOSED_RESUME: &str = r#"portico_connections_closed_total{code="4010"}"#;
const CLOSED_VERSION: &str = r#"portico_connections_closed_total{code="4022"}"#;
const CLOSED_SLOW: &str = r#"portico_connections_closed_total{code="4003"}"#;
