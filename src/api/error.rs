//! Every refusal becomes an answer here, in Docker's words and with Docker's status.

use http::StatusCode;
use skep_core::command::Rejection;
use skep_core::model::Kind;

use crate::chain::chain;
use crate::gate::Refusal;

const NOT_MANAGER: &str = "This node is not a swarm manager. Worker nodes can't be used to view \
    or modify cluster state. Please run this command on a manager node or promote the current \
    node to a manager.";
const NOT_IN_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \
    \"docker swarm join\" to connect this node to swarm and try again.";
const ALREADY_IN_SWARM: &str = "This node is already part of a swarm. Use \"docker swarm leave\" \
    to leave this swarm and join another one.";
const MANAGER_NOT_READY: &str = "This node is not a swarm manager. Manager is being prepared or \
    has trouble connecting to the cluster.";
const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please \
    use \"docker swarm unlock\" to unlock it.";
const LEAVING: &str = "You are attempting to leave the swarm on a node that is participating as a \
    manager. ";
const LAST_MANAGER: &str = "Removing the last manager erases all current state of the swarm. Use \
    `--force` to ignore this message. ";
const ONLY_WAY_BACK: &str = "The only way to restore a swarm that has lost consensus is to \
    reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.";
const JOIN_TIMEOUT: &str = "Timeout was reached before node joined. The attempt to join the swarm \
    will continue in the background. Use the \"docker info\" command to see the current swarm \
    status of your node.";
const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers \
    are online. Make sure more than half of the managers are online.";

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
        Refusal::ManagerNotReady => unavailable(MANAGER_NOT_READY),
        Refusal::Locked => unavailable(LOCKED),
        Refusal::NotLocked => (StatusCode::CONFLICT, "swarm is not locked".to_owned()),
        Refusal::WrongUnlockKey => (
            StatusCode::UNAUTHORIZED,
            "swarm could not be unlocked: invalid key provided".to_owned(),
        ),
        Refusal::LastManager => unavailable(&format!("{LEAVING}{LAST_MANAGER}")),
        Refusal::LeavesAsManager => unavailable(&format!("{LEAVING}{ONLY_WAY_BACK}")),
        Refusal::LeavesNoQuorum { left, of } => unavailable(&format!(
            "{LEAVING}Removing this node leaves {left} managers out of {of}. Without a Raft quorum \
             your swarm will be inaccessible. {ONLY_WAY_BACK}"
        )),
        Refusal::JoinTimeout => unavailable(JOIN_TIMEOUT),
        Refusal::NoLeader => unavailable(NO_LEADER),
        Refusal::JoinFailed(_)
        | Refusal::Unknown(_)
        | Refusal::NoSpace(_)
        | Refusal::Outlived(_)
        | Refusal::Unreachable { .. } => unavailable(&refusal.to_string()),
        Refusal::InvalidToken(_) => (StatusCode::BAD_REQUEST, refusal.to_string()),
        Refusal::Invalid(text) | Refusal::JoinRefused(text) => {
            (StatusCode::BAD_REQUEST, text.clone())
        }
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
        assert_eq!(said(Refusal::NotInSwarm).0, 503);
    }

    #[test]
    fn a_manager_that_leaves_is_told_what_it_costs() {
        let start = "You are attempting to leave the swarm on a node that is participating as a \
                     manager. ";
        let told = |refusal| {
            let (status, text) = said(refusal);
            assert_eq!(status, 503);
            text.strip_prefix(start).unwrap().to_owned()
        };
        assert_eq!(
            told(Refusal::LastManager),
            "Removing the last manager erases all current state of the swarm. Use `--force` to \
             ignore this message. "
        );
        let way_back = "The only way to restore a swarm that has lost consensus is to \
                        reinitialize it with `--force-new-cluster`. Use `--force` to suppress \
                        this message.";
        assert_eq!(
            told(Refusal::LeavesNoQuorum { left: 1, of: 2 }),
            format!(
                "Removing this node leaves 1 managers out of 2. Without a Raft quorum your swarm \
                 will be inaccessible. {way_back}"
            )
        );
        assert_eq!(told(Refusal::LeavesAsManager), way_back);
    }

    #[test]
    fn standing_in_the_way_has_dockers_status() {
        assert_eq!(
            said(Refusal::WrongUnlockKey),
            (401, "swarm could not be unlocked: invalid key provided".to_owned())
        );
        assert_eq!(said(Refusal::NotLocked), (409, "swarm is not locked".to_owned()));
        let (status, text) = said(Refusal::Locked);
        assert_eq!(status, 503);
        assert!(text.starts_with("Swarm is encrypted and needs to be unlocked before it can be"));
        assert_eq!(
            said(Refusal::InvalidToken("it has 2 parts, not 4".to_owned())),
            (400, "invalid join token: it has 2 parts, not 4".to_owned())
        );
        assert_eq!(said(Refusal::JoinRefused("the token was rotated".to_owned())).0, 400);
        assert_eq!(said(Refusal::JoinFailed("10.0.0.1:2377 is silent".to_owned())).0, 503);
        assert_eq!(said(Refusal::JoinTimeout).0, 503);
        assert_eq!(said(Refusal::ManagerNotReady).0, 503);
    }

    #[test]
    fn a_failure_tells_its_causes_once() {
        let source = std::io::Error::other("disk on fire");
        let refusal = Refusal::Failed { what: "write a file".to_owned(), source: source.into() };
        assert_eq!(said(refusal), (500, "write a file: disk on fire".to_owned()));
    }
}
