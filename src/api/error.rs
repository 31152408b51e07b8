//! Every refusal becomes an answer here, in Docker's words and with Docker's status.

use std::error::Error;

use http::StatusCode;
use skep_core::command::Rejection;
use skep_core::model::Kind;

use crate::gate::Refusal;

const NOT_MANAGER: &str = "This node is not a swarm manager. Worker nodes can't be used to view \
    or modify cluster state. Please run this command on a manager node or promote the current \
    node to a manager.";
const NOT_IN_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \
    \"docker swarm join\" to connect this node to swarm and try again.";
const ALREADY_IN_SWARM: &str = "This node is already part of a swarm. Use \"docker swarm leave\" \
    to leave this swarm and join another one.";
const LAST_MANAGER: &str = "You are attempting to leave the swarm on a node that is participating \
    as a manager. Removing the last manager erases all current state of the swarm. Use `--force` \
    to ignore this message. ";

/// Why a call has no other answer.
#[derive(Debug)]
pub(super) enum ApiError {
    /// There is no such path in any version of the API.
    PageNotFound,
    /// The node refused.
    Refused(Refusal),
    /// The call itself is wrong.
    Said(StatusCode, String),
}

impl ApiError {
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::Said(StatusCode::BAD_REQUEST, message.into())
    }

    /// A rule of the swarm is broken: Docker names the class in these.
    pub(super) fn invalid(message: &str) -> Self {
        Self::bad(format!("rpc error: code = InvalidArgument desc = {message}"))
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::Said(StatusCode::NOT_FOUND, message.into())
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::Said(StatusCode::CONFLICT, message.into())
    }

    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self::Said(StatusCode::NOT_IMPLEMENTED, message.into())
    }

    /// A part of a request that skep does not carry out and therefore does not accept.
    pub(super) fn unsupported_field(field: &str) -> Self {
        Self::unsupported(format!("{field} is not supported by this version of skep"))
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::Said(StatusCode::INTERNAL_SERVER_ERROR, message.into())
    }

    /// Status and text of the answer.
    pub(super) fn answer(&self) -> (StatusCode, String) {
        match self {
            Self::PageNotFound => (StatusCode::NOT_FOUND, "page not found".to_owned()),
            Self::Said(status, message) => (*status, message.clone()),
            Self::Refused(refusal) => refused(refusal),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn refused(refusal: &Refusal) -> (StatusCode, String) {
    let unavailable = |text: &str| (StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
    match refusal {
        Refusal::Rejected(rejection) => rejected(rejection),
        Refusal::NotInSwarm => unavailable(NOT_IN_SWARM),
        Refusal::AlreadyInSwarm => unavailable(ALREADY_IN_SWARM),
        Refusal::NotManager => unavailable(NOT_MANAGER),
        Refusal::LastManager => unavailable(LAST_MANAGER),
        Refusal::NoLeader
        | Refusal::Unknown(_)
        | Refusal::NoSpace(_)
        | Refusal::Unreachable { .. } => unavailable(&refusal.to_string()),
        Refusal::Invalid(text) => (StatusCode::BAD_REQUEST, text.clone()),
        Refusal::NotFound(text) => (StatusCode::NOT_FOUND, text.clone()),
        Refusal::Conflict(text) => (StatusCode::CONFLICT, text.clone()),
        Refusal::Unsupported(text) => (StatusCode::NOT_IMPLEMENTED, text.clone()),
        Refusal::Failed { .. } => (StatusCode::INTERNAL_SERVER_ERROR, chain(refusal)),
    }
}

fn rejected(rejection: &Rejection) -> (StatusCode, String) {
    let (status, code) = match rejection {
        Rejection::NotFound { .. } => return (StatusCode::NOT_FOUND, rejection.to_string()),
        Rejection::NoCluster => {
            return (StatusCode::SERVICE_UNAVAILABLE, NOT_IN_SWARM.to_owned());
        }
        Rejection::Exists { kind: Kind::Service, .. } => {
            let text = "rpc error: code = AlreadyExists desc = name conflicts with an existing \
                        object: ";
            return (StatusCode::CONFLICT, format!("{text}{rejection}"));
        }
        Rejection::Exists { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
        Rejection::OutOfSequence => (StatusCode::INTERNAL_SERVER_ERROR, "Unknown"),
        Rejection::InUse { .. } | Rejection::Invalid(_) => {
            (StatusCode::BAD_REQUEST, "InvalidArgument")
        }
        Rejection::Precondition(_) => (StatusCode::BAD_REQUEST, "FailedPrecondition"),
        Rejection::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, "Unimplemented"),
        Rejection::Full(_) => (StatusCode::SERVICE_UNAVAILABLE, "ResourceExhausted"),
        Rejection::StaleKey { .. } => (StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
    };
    (status, format!("rpc error: code = {code} desc = {rejection}"))
}

/// An error with its causes, each once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(refusal: Refusal) -> (u16, String) {
        let (status, text) = ApiError::from(refusal).answer();
        (status.as_u16(), text)
    }

    fn of(rejection: Rejection) -> (u16, String) {
        said(Refusal::Rejected(rejection))
    }

    #[test]
    fn rejections_read_as_the_recorded_ones() {
        let name = "rec_data".to_owned();
        assert_eq!(
            of(Rejection::Exists { kind: Kind::Secret, name: name.clone() }),
            (
                409,
                "rpc error: code = AlreadyExists desc = secret rec_data already exists".to_owned()
            )
        );
        assert_eq!(
            of(Rejection::Exists { kind: Kind::Service, name: "rec_web".to_owned() }).1,
            "rpc error: code = AlreadyExists desc = name conflicts with an existing object: \
             service rec_web already exists"
        );
        assert_eq!(
            of(Rejection::NotFound { kind: Kind::Secret, what: "x".to_owned() }),
            (404, "secret x not found".to_owned())
        );
        assert_eq!(
            of(Rejection::InUse { kind: Kind::Secret, name, services: vec!["rec_web".to_owned()] }),
            (
                400,
                "rpc error: code = InvalidArgument desc = secret 'rec_data' is in use by the \
                 following service: rec_web"
                    .to_owned()
            )
        );
        assert_eq!(
            of(Rejection::OutOfSequence),
            (500, "rpc error: code = Unknown desc = update out of sequence".to_owned())
        );
        assert_eq!(said(Refusal::LastManager).0, 503);
        assert_eq!(said(Refusal::NotInSwarm).0, 503);
    }

    #[test]
    fn a_failure_tells_its_causes_once() {
        let source = std::io::Error::other("disk on fire");
        let refusal = Refusal::Failed { what: "write a file".to_owned(), source: source.into() };
        assert_eq!(said(refusal), (500, "write a file: disk on fire".to_owned()));
    }
}
