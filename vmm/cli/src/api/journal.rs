//! What Firecracker logs of its API, word for word (its src/firecracker/src/api_server): harnesses wait for these lines
//! and measure by them. Only under its name.

use std::time::Instant;

use log::Level;

use super::ApiResponse;
use super::http::Method;
use crate::logger::log_as_firecracker;

/// A request has arrived.
pub(super) fn received(method: Method, path: &str, body: &[u8]) {
    let request = format_args!("The API server received a {method:?} request on {path:?}");
    // The metadata of /mmds may be secret.
    if body.is_empty() || path == "/mmds" {
        return log_as_firecracker(Level::Info, format_args!("{request}."));
    }
    let body = str::from_utf8(body).unwrap_or("inconvertible to UTF-8");
    log_as_firecracker(Level::Info, format_args!("{request} with body {body:?}."));
}

/// The request that has begun at `since` is answered; `deprecated` is what clients should stop to use.
pub(super) fn answered(response: &ApiResponse, deprecated: Option<&str>, since: Instant) {
    if let Some(what) = deprecated {
        log_as_firecracker(Level::Warn, format_args!("{what}"));
    }
    let done = "The request was executed successfully. Status code:";
    match response {
        ApiResponse::Done => {
            log_as_firecracker(Level::Info, format_args!("{done} 204 No Content."))
        }
        ApiResponse::Value(_) => log_as_firecracker(Level::Info, format_args!("{done} 200 OK.")),
        ApiResponse::Fault(why) => log_as_firecracker(
            Level::Error,
            format_args!("Received Error. Status code: 400 Bad Request. Message: {why}"),
        ),
    }
    let us = since.elapsed().as_micros();
    log_as_firecracker(Level::Debug, format_args!("Total previous API call duration: {us} us."));
}
