//! Name spaces: made by the keeper, furnished by init. A root of its own on a small file system in memory, with the
//! system's programs, a directory to write to, devices that lead nowhere, and nothing else of the host.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, sendto, socket};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set,
    configure_capability_in_ambient_set, set_capabilities,
};

use super::{HOME, Plan};

/// What init needs until the room is furnished: mounts, and the loopback.
const NEEDED: [CapabilitySet; 2] = [CapabilitySet::SYS_ADMIN, CapabilitySet::NET_ADMIN];
/// Trees of programs and libraries. What is a link on the host is one in the room.
const TREES: [&str; 10] = [
    "usr",
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "nix/store",
    "gnu/store",
    "app/bin",
];
/// What programs look for in `/etc`; no settings, no keys, no users of the host.
const ETC: [&str; 8] = [
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "localtime",
    "ssl/openssl.cnf",
    "ssl/certs",
    "locale.conf",
];
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Leaves the name spaces of the host; what is started from now on is in new ones.
pub(super) fn leave() -> Result<(), String> {
    let told = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWUTS;
    if !user.is_root() {
        flags |= UnshareFlags::NEWUSER;
    }
    unshare(flags).map_err(|e| told("name spaces are not allowed here")(e.into()))?;
    if user.is_root() {
        return Ok(());
    }
    // Our own number is all that there is inside. (user_namespaces(7), "Defining user and group ID mappings".)
    let write = |path: &str, text: String| fs::write(path, text).map_err(told("users can not be mapped"));
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{0} {0} 1", user.as_raw()))?;
    write("/proc/self/gid_map", format!("{0} {0} 1", group.as_raw()))?;
    // A user that is not root loses what it may do when it starts a program, unless it is said otherwise.
    let all = NEEDED
        .into_iter()
        .fold(CapabilitySet::empty(), |all, one| all | one);
    let sets = CapabilitySets {
        effective: all,
        permitted: all,
        inheritable: all,
    };
    let hand_on = || -> rustix::io::Result<()> {
        set_capabilities(None, sets)?;
        for one in NEEDED {
            configure_capability_in_ambient_set(one, true)?;
        }
        Ok(())
    };
    hand_on().map_err(|e| told("capabilities can not be handed on")(e.into()))
}

#[allow(unsafe_code, reason = "rustix has no safe function for it")]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the danger is `UnshareFlags::FILES`, which parts the open files of threads: it is never given, and the keeper
    // has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Makes the room: called by its first process, which is alone and has one thread.
pub(super) fn furnish(plan: &Plan) -> io::Result<()> {
    loopback_up().map_err(doing("the loopback can not be used"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let root = plan.root.as_path();
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", root, "tmpfs", quiet, Some(c"size=4m,mode=0755"))
        .map_err(|e| doing("a root can not be mounted")(e.into()))?;
    for tree in TREES {
        show(Path::new("/"), root, Path::new(tree))?;
    }
    etc(plan, root)?;
    devices(root)?;
    // Where a host hides parts of it from us, the kernel hides all of it from those inside.
    fs::create_dir(root.join("proc"))?;
    let _ = mount(
        "proc",
        root.join("proc"),
        "proc",
        quiet | MountFlags::NOEXEC,
        None,
    );
    for (of, at) in [(plan.home.clone(), &HOME[1..]), (plan.home.join("tmp"), "tmp")] {
        fs::create_dir_all(root.join(at))?;
        mount_bind(&of, root.join(at)).map_err(|e| doing("the directory can not be mounted")(e.into()))?;
    }
    for path in &plan.visible {
        let path = path.strip_prefix("/").unwrap_or(path);
        if !root.join(path).exists() {
            show(Path::new("/"), root, path)?;
        }
    }
    read_only(root)?;
    mount_remount(root, quiet | MountFlags::RDONLY, "size=4m")?;
    std::env::set_current_dir(root)?;
    rustix::process::pivot_root(".", ".").map_err(|e| doing("the root can not be changed")(e.into()))?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    if !rustix::process::geteuid().is_root() {
        clear_ambient_capability_set()?;
        let none = CapabilitySet::empty();
        set_capabilities(
            None,
            CapabilitySets {
                effective: none,
                permitted: none,
                inheritable: none,
            },
        )?;
    }
    Ok(())
}

/// Makes everything of the host that is shown read-only, mounts below it too; what is written goes home, or to memory.
fn read_only(root: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    for line in table.lines() {
        // proc_pid_mountinfo(5): the fifth field is where it is mounted, the sixth how.
        let mut fields = line.split(' ').skip(4);
        let (Some(at), Some(how)) = (fields.next(), fields.next()) else {
            continue;
        };
        let at = PathBuf::from(OsString::from_vec(unescaped(at)));
        let Ok(inside) = at.strip_prefix(root) else {
            continue;
        };
        // Not what is below the first two: what is shown may lie there.
        let writable = [&HOME[1..], "tmp", ""].iter().any(|w| inside == Path::new(w));
        if writable || inside.starts_with("dev") || inside.starts_with("proc") {
            continue;
        }
        // Flags that a mount has may not be taken from it here. (mount_namespaces(7), "locked".)
        let has = |flag| how.split(',').any(|h| h == flag);
        let mut flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        for (name, flag) in [
            ("noexec", MountFlags::NOEXEC),
            ("noatime", MountFlags::NOATIME),
            ("nodiratime", MountFlags::NODIRATIME),
            ("relatime", MountFlags::RELATIME),
        ] {
            if has(name) {
                flags |= flag;
            }
        }
        mount_remount(&at, flags, "").map_err(|e| {
            let e = io::Error::from(e);
            io::Error::new(
                e.kind(),
                format!("{} can not be made read-only: {e}", at.display()),
            )
        })?;
    }
    Ok(())
}

/// A path of mountinfo: blanks and the like are octal numbers after a backslash.
fn unescaped(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        let octal = text
            .get(at + 1..at + 4)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(byte));
        at += if octal.is_some() { 4 } else { 1 };
    }
    out
}

fn doing(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// Has a file or a directory of the host at the same place in the room; what is not there is not there.
fn show(host: &Path, root: &Path, path: &Path) -> io::Result<()> {
    let (of, at) = (host.join(path), root.join(path));
    let Ok(metadata) = fs::symlink_metadata(&of) else {
        return Ok(());
    };
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    if metadata.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(&of)?, &at);
    }
    if metadata.is_dir() {
        fs::create_dir_all(&at)?;
        mount_bind_recursive(&of, &at)?;
    } else {
        fs::File::create(&at)?;
        mount_bind(&of, &at)?;
    }
    Ok(())
}

fn etc(plan: &Plan, root: &Path) -> io::Result<()> {
    let etc = root.join("etc");
    fs::create_dir(&etc)?;
    let (user, group) = plan.user.unwrap_or_else(|| {
        (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        )
    });
    // initdb wants a name for who it is.
    let users = format!(
        "root:x:0:0:root:/:/bin/false\ndrill:x:{user}:{group}:drill:{HOME}:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    );
    for (name, text) in [
        ("passwd", users.as_str()),
        ("group", &format!("root:x:0:\ndrill:x:{group}:\n")),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ] {
        fs::write(etc.join(name), text)?;
    }
    for name in ETC {
        let of = Path::new("/etc").join(name);
        // Followed: a link may lead to where the room does not reach.
        if let Ok(real) = of.canonicalize() {
            place(&real, &etc.join(name))?;
        }
    }
    Ok(())
}

fn place(of: &Path, at: &Path) -> io::Result<()> {
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    if of.is_dir() {
        fs::create_dir(at)?;
        mount_bind_recursive(of, at)?;
    } else {
        fs::File::create(at)?;
        mount_bind(of, at)?;
    }
    Ok(())
}

fn devices(root: &Path) -> io::Result<()> {
    let dev = root.join("dev");
    fs::create_dir(&dev)?;
    for name in DEVICES {
        place(&Path::new("/dev").join(name), &dev.join(name))?;
    }
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(to, dev.join(name))?;
    }
    let shm: PathBuf = dev.join("shm");
    fs::create_dir(&shm)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Memory that goes with the room.
    mount("tmpfs", &shm, "tmpfs", flags, Some(c"size=1g,mode=1777"))?;
    Ok(())
}

/// `RTM_NEWLINK` for interface 1, which is the loopback in every network name space. (rtnetlink(7), netlink(7).)
fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 0x01 | 0x04;
    const NLMSG_ERROR: u16 = 2;
    const IFF_UP: u32 = 1;
    const LOOPBACK: i32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family and padding, type, index, flags, which of them are meant.
    message.extend([0; 4]);
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    sendto(
        &socket,
        &message,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut answer = [0u8; 256];
    let (got, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let bytes = |from: usize| -> Option<[u8; 4]> { answer[..got].get(from..from + 4)?.try_into().ok() };
    let kind = bytes(4).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    match (kind, bytes(16).map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::other("the kernel does not answer")),
    }
}
