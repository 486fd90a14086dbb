//! What a program may do: its user, its groups and its capabilities.
//!
//! Owns deciding from the settings and from what the supervisor itself may do. Carrying it out is
//! [`crate::sys::spawn`]'s.

use std::ffi::CString;
use std::fs;

use nix::unistd::{Group, User, getegid, geteuid, getgrouplist};

use super::{Unusable, unusable};
use crate::config::privileges::Capabilities;
use crate::config::service::Service;
use crate::sys::spawn::{Identity, Limits, Privileges};

/// The capabilities a process has, as `/proc/PID/status` shows them.
#[derive(Clone, Copy, Debug)]
struct Held {
    inheritable: Capabilities,
    permitted: Capabilities,
    effective: Capabilities,
    bounding: Capabilities,
}

impl Held {
    /// The supervisor's own.
    fn own() -> Result<Self, Unusable> {
        let status = fs::read_to_string("/proc/self/status");
        let status = status.map_err(|error| unusable(format!("/proc/self/status: {error}")))?;
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
                .map(Capabilities::from_bits)
                .ok_or_else(|| unusable(format!("/proc/self/status tells no {name}")))
        };
        Ok(Self {
            inheritable: set("CapInh:")?,
            permitted: set("CapPrm:")?,
            effective: set("CapEff:")?,
            bounding: set("CapBnd:")?,
        })
    }
}

/// What a service's program may do.
///
/// # Errors
///
/// The user or a group does not exist, or the supervisor cannot give or take what is asked for.
pub(super) fn privileges(service: &Service) -> Result<Privileges, Unusable> {
    let identity = identity(service)?;
    let user = identity
        .as_ref()
        .map_or_else(|| geteuid().as_raw(), |identity| identity.user);
    let another = service.user.is_some() && user != 0;
    let no_new_privileges = service.no_new_privileges.unwrap_or(another);
    let limits = limits(service, user == 0, no_new_privileges, Held::own()?)?;
    Ok(Privileges {
        identity,
        limits,
        no_new_privileges,
    })
}

/// How the capabilities are limited; not at all for a program of root's of which nothing is said.
fn limits(
    service: &Service,
    is_root: bool,
    no_new_privileges: bool,
    held: Held,
) -> Result<Option<Limits>, Unusable> {
    let kept = match service.capabilities {
        None if is_root => return Ok(None),
        None => Capabilities::default(),
        Some(asked) => asked,
    };
    let missing = kept.without(held.permitted);
    if missing != Capabilities::default() {
        return Err(unusable(format!(
            "capabilities: the supervisor does not have {missing} itself"
        )));
    }
    let may_narrow = held.effective.contains(Capabilities::SETPCAP);
    // Without the bounding set, root has again what it gave up as soon as it executes something.
    if is_root && !may_narrow && !kept.contains(held.bounding) {
        return Err(unusable(
            "capabilities: without setpcap the supervisor cannot take any from a program of root's",
        ));
    }
    // What sudo and its like give is within that set, so one who asks for them needs it as it is.
    let leave = service.capabilities.is_none() && !no_new_privileges;
    let dropped = match may_narrow && !leave {
        true => held.bounding.without(kept),
        false => Capabilities::default(),
    };
    Ok(Some(Limits {
        kept: kept.bits(),
        dropped: dropped.bits(),
        // Not for nothing: the call may be one that a system call filter does not let pass.
        set: held.inheritable != kept,
    }))
}

fn identity(service: &Service) -> Result<Option<Identity>, Unusable> {
    let Some(name) = &service.user else {
        return Ok(None);
    };
    let user = User::from_name(name)
        .map_err(|error| unusable(format!("user {name}: {error}")))?
        .ok_or_else(|| unusable(format!("there is no user {name}")))?;
    let own = geteuid();
    if !own.is_root() && own != user.uid {
        return Err(unusable(format!(
            "only root can run a service as {name}; drop `user`"
        )));
    }
    let group = match &service.group {
        Some(group) => id_of_group(group)?,
        None => user.gid.as_raw(),
    };
    let groups = match &service.groups {
        Some(names) => names.iter().map(|name| id_of_group(name)).collect(),
        None => groups_of(name, group),
    }?;
    // It is this user already, and only root could change the groups.
    if !own.is_root() {
        let other = service.group.is_some() && group != getegid().as_raw();
        return match other || service.groups.is_some() {
            true => Err(unusable(
                "only root can change groups; drop `group` and `groups`",
            )),
            false => Ok(None),
        };
    }
    Ok(Some(Identity {
        user: user.uid.as_raw(),
        group,
        groups,
    }))
}

fn id_of_group(name: &str) -> Result<u32, Unusable> {
    Group::from_name(name)
        .map_err(|error| unusable(format!("group {name}: {error}")))?
        .map(|group| group.gid.as_raw())
        .ok_or_else(|| unusable(format!("there is no group {name}")))
}

fn groups_of(user: &str, group: u32) -> Result<Vec<u32>, Unusable> {
    let plain = CString::new(user).map_err(|_| unusable("a user name with a NUL"))?;
    let groups = getgrouplist(&plain, group.into())
        .map_err(|error| unusable(format!("groups of {user}: {error}")))?;
    Ok(groups.iter().map(|gid| gid.as_raw()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Capabilities {
        Capabilities::from_bits((1 << 41) - 1)
    }

    fn of(names: &str) -> Capabilities {
        names.parse().unwrap()
    }

    fn holding(inheritable: &str, others: Capabilities) -> Held {
        Held {
            inheritable: of(inheritable),
            permitted: others,
            effective: others,
            bounding: others,
        }
    }

    fn asking(capabilities: Option<&str>) -> Service {
        Service {
            capabilities: capabilities.map(of),
            ..Service::default()
        }
    }

    #[test]
    fn a_program_of_roots_keeps_all_unless_something_is_said() {
        let root = holding("", all());
        assert_eq!(limits(&asking(None), true, false, root), Ok(None));
        let narrowed = limits(&asking(Some("kill")), true, false, root).unwrap();
        assert_eq!(
            narrowed,
            Some(Limits {
                kept: of("kill").bits(),
                dropped: all().without(of("kill")).bits(),
                set: true
            })
        );
        let error = limits(&asking(Some("")), true, false, holding("", of("kill"))).unwrap_err();
        assert!(error.to_string().contains("without setpcap"), "{error}");
    }

    #[test]
    fn every_other_has_none_and_sudo_works_only_where_it_was_asked_for() {
        let root = holding("", all());
        let none = |dropped: Capabilities, set| {
            let dropped = dropped.bits();
            let kept = 0;
            Ok(Some(Limits { kept, dropped, set }))
        };
        assert_eq!(limits(&asking(None), false, true, root), none(all(), false));
        assert_eq!(
            limits(&asking(None), false, false, root),
            none(of(""), false)
        );
        // Said is said, also that it is nothing.
        assert_eq!(
            limits(&asking(Some("")), false, false, root),
            none(all(), false)
        );
        // A supervisor that may bind low ports and nothing else keeps that to itself.
        let port = holding("net_bind_service", of("net_bind_service"));
        assert_eq!(limits(&asking(None), false, true, port), none(of(""), true));
    }

    #[test]
    fn what_the_supervisor_lacks_cannot_be_given() {
        let port = holding("net_bind_service", of("net_bind_service"));
        let given = limits(&asking(Some("net_bind_service")), false, true, port).unwrap();
        assert_eq!(
            given,
            Some(Limits {
                kept: 1 << 10,
                dropped: 0,
                set: false
            })
        );
        let asked = asking(Some("net_bind_service,net_raw"));
        let error = limits(&asked, false, true, port).unwrap_err();
        assert!(error.to_string().contains("not have net_raw"), "{error}");
    }
}
