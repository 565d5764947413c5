//! The HTTP/1.1 that the API needs: requests with a length, responses with JSON.

use std::io::Write;

use serde_json::{Value, json};

use super::ApiResponse;

/// Most bytes of a request before its body.
pub const MAX_HEAD: usize = 8 << 10;
/// The status of a body that is too large, until it is rendered.
const TOO_LARGE: u16 = 413;
/// Most header fields of a request.
const MAX_FIELDS: usize = 64;
/// The interim response for a client that waits for it before it sends a body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// PUT
    Put,
    /// PATCH
    Patch,
}

/// A request without its body.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The path of the target.
    pub path: String,
    /// Bytes of the head itself.
    pub len: usize,
    /// Bytes of the body that follows.
    pub body: usize,
    /// The client wants the connection closed after the answer.
    pub closes: bool,
    /// The client waits for [`CONTINUE`].
    pub waits: bool,
}

/// An error that closes the connection: status and reason.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpError(pub u16, pub String);

fn bad(reason: impl Into<String>) -> HttpError {
    HttpError(400, reason.into())
}

/// Parses the head at the start of `bytes`; `None` if it is incomplete. A body may have `max_bytes`.
pub fn parse(bytes: &[u8], max_bytes: usize) -> Result<Option<Head>, HttpError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(_) => return Err(HttpError(431, format!("a head of more than {MAX_HEAD} bytes"))),
        Err(error) => return Err(bad(format!("no HTTP request: {error}"))),
    };
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("PUT") => Method::Put,
        Some("PATCH") => Method::Patch,
        other => {
            let method = other.unwrap_or_default();
            return Err(bad(format!("method {method}: there are GET, PUT and PATCH")));
        }
    };
    let path = path(request.path.unwrap_or_default()).to_owned();
    // Connections of HTTP/1.0 stay open, too, as Firecracker's do.
    let mut head = Head { method, path, len, body: 0, closes: false, waits: false };
    let mut length = None;
    for field in request.headers.iter() {
        let value = String::from_utf8_lossy(field.value);
        read_field(&mut head, &mut length, &field.name.to_ascii_lowercase(), value.trim())?;
    }
    head.body = length.unwrap_or(0);
    if head.body > max_bytes {
        let reason = format!(
            "Request payload with size {} is larger than the limit of {max_bytes} allowed by server.",
            head.body
        );
        return Err(HttpError(TOO_LARGE, reason));
    }
    Ok(Some(head))
}

/// The path of a request's target, which may be a whole URI (RFC 9112, 3.2.2). Its host is ignored.
fn path(target: &str) -> &str {
    match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            rest.find('/').map_or("/", |start| rest.split_at(start).1)
        }
        _ => target,
    }
}

/// Content-Type is ignored: a body is JSON or refused, and curl labels its bodies as forms.
fn read_field(
    head: &mut Head,
    length: &mut Option<usize>,
    name: &str,
    value: &str,
) -> Result<(), HttpError> {
    match name {
        "content-length" => {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            // A number that does not fit is too large in any case.
            let len = value.parse().unwrap_or(usize::MAX);
            if !digits || length.is_some_and(|other| other != len) {
                return Err(bad(format!("Content-Length {value}")));
            }
            *length = Some(len);
        }
        "transfer-encoding" => {
            let reason =
                format!("Transfer-Encoding {value}: send the body with a Content-Length instead");
            return Err(HttpError(411, reason));
        }
        "connection" => {
            for option in value.split(',').map(str::trim) {
                head.closes |= option.eq_ignore_ascii_case("close");
            }
        }
        "expect" if value.eq_ignore_ascii_case("100-continue") => head.waits = true,
        "expect" => return Err(HttpError(417, format!("Expect {value}"))),
        _ => {}
    }
    Ok(())
}

/// What the fields of a response's head depend on, besides its body.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// The server's name.
    pub server: &'static str,
    /// The connection is closed after it.
    pub closes: bool,
    /// The request had something that clients should stop to use.
    pub is_deprecated: bool,
}

/// `response` in bytes.
pub fn render(answer: &ApiResponse, manner: Manner) -> Vec<u8> {
    match answer {
        ApiResponse::Done => render_with(204, None, manner),
        ApiResponse::Value(value) => render_with(200, Some(value), manner),
        ApiResponse::Fault(reason) => render_with(400, Some(&fault(reason)), manner),
    }
}

/// `error` in bytes; the connection is closed after it.
pub fn render_refusal(HttpError(status, reason): &HttpError, server: &'static str) -> Vec<u8> {
    if *status != TOO_LARGE {
        let manner = Manner { server, closes: true, is_deprecated: false };
        return render_with(*status, Some(&fault(reason)), manner);
    }
    // Byte for byte as Firecracker, whose text has a line break that JSON does not allow: clients compare it.
    let body =
        format!("{{ \"error\": \"{reason}\nAll previous unanswered requests will be dropped.\" }}");
    let len = body.len();
    format!(
        "HTTP/1.1 400 \r\nServer: {server}\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn fault(reason: &str) -> Value {
    json!({ "fault_message": reason })
}

fn render_with(status: u16, body: Option<&Value>, manner: Manner) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        204 => "No Content",
        411 => "Length Required",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        _ => "Bad Request",
    };
    let Manner { server, closes, is_deprecated } = manner;
    let connection = if closes { "close" } else { "keep-alive" };
    let deprecation = if is_deprecated { "Deprecation: true\r\n" } else { "" };
    let mut bytes = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = write!(
        bytes,
        "HTTP/1.1 {status} {reason}\r\nServer: {server}\r\nConnection: {connection}\r\n{deprecation}"
    );
    match body.map(Value::to_string) {
        None => bytes.extend(b"\r\n"),
        Some(body) => {
            let len = body.len();
            let _ = write!(
                bytes,
                "Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
            );
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_read_whole_or_not_at_all() {
        let text = b"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\
            content-type: application/json; charset=utf-8\r\nExpect: 100-continue\r\n\r\n{}";
        for len in 0..text.len() - 2 {
            assert_eq!(parse(&text[..len], 10), Ok(None), "{len} bytes");
        }
        let head = parse(text, 10).unwrap().unwrap();
        assert_eq!((head.method, head.path.as_str()), (Method::Put, "/actions"));
        assert_eq!((head.len, head.body), (text.len() - 2, 2));
        assert!(head.waits && !head.closes);
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_status() {
        let request = |rest: &str| {
            let text = format!("PUT / HTTP/1.1\r\n{rest}\r\n\r\n");
            parse(text.as_bytes(), 100).map(|_| ()).map_err(|HttpError(status, _)| status)
        };
        assert_eq!(request("Content-Length: 100"), Ok(()));
        assert_eq!(request("Content-Length: 101"), Err(413));
        assert_eq!(request("Content-Length: 99999999999999999999999"), Err(413));
        assert_eq!(request("Content-Length: -1"), Err(400));
        assert_eq!(request("Content-Length: 1\r\nContent-Length: 2"), Err(400));
        assert_eq!(request("Transfer-Encoding: chunked"), Err(411));
        assert_eq!(request("Expect: more"), Err(417));
        assert_eq!(request(&format!("X: {}", "y".repeat(MAX_HEAD))), Err(431));
        assert_eq!(request(&"X: y\r\n".repeat(MAX_FIELDS + 1)), Err(400));
        for text in ["DELETE / HTTP/1.1\r\n\r\n", "\0\r\n\r\n", "GET / HTTP/9.1\r\n\r\n"] {
            assert_eq!(parse(text.as_bytes(), 100).unwrap_err().0, 400, "{text}");
        }
        let endless = vec![b'A'; MAX_HEAD];
        assert_eq!(parse(&endless, 100).unwrap_err().0, 431);
    }

    #[test]
    fn what_clients_may_send_is_understood() {
        let request = |text: &str| parse(text.as_bytes(), 100).unwrap().unwrap();
        for (target, path) in [
            ("/version", "/version"),
            ("http://localhost/version", "/version"),
            ("HTTP://localhost:80/drives/a", "/drives/a"),
            ("http+unix://%2Fvm%2Fapi.sock/vm/config", "/vm/config"),
            ("http://localhost", "/"),
            ("/a?b=http://c", "/a?b=http://c"),
            ("*", "*"),
        ] {
            assert_eq!(request(&format!("GET {target} HTTP/1.1\r\n\r\n")).path, path, "{target}");
        }
        for (fields, closes) in [
            ("connection: Close", true),
            ("Connection: TE, close", true),
            ("Connection: keep-alive, Upgrade\r\nUpgrade: h2c", false),
            ("Content-Type: text/plain\r\nUser-Agent: caf\u{e9}", false),
        ] {
            let text = format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n");
            assert_eq!(request(&text).closes, closes, "{fields}");
        }
        let latin = b"\r\nGET / HTTP/1.0\r\nUser-Agent: caf\xe9\r\nConnection: Keep-Alive\r\n\r\n";
        assert!(!parse(latin, 100).unwrap().unwrap().closes);
        assert!(!request("GET / HTTP/1.0\r\n\r\n").closes, "it stays open");
        assert!(request("GET / HTTP/1.0\r\nConnection: close\r\n\r\n").closes);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "(GET|PUT) /[a-z]{0,9} HTTP/1.[01]\r\n([A-Z][a-z-]{1,14}: [ -~]{0,9}\r\n){0,5}\r\n") {
            let _ = parse(&bytes, 100);
            let _ = parse(text.as_bytes(), 100);
        }
    }
}
