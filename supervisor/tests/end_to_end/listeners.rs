//! Listeners of every kind, over reloads, and the changes a configuration makes to them.

use std::io::Read;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::{PATIENCE, Setup, Supervisor};

/// Answers on every socket it inherits with its generation and the socket's name.
const ECHO: &str = r#"
import os, select, signal, socket, sys
names = os.environ["LISTEN_FDNAMES"].split(":")
generation = os.environ["HEIRLOOM_GENERATION"]
sockets = {}
for n, name in enumerate(names):
    s = socket.socket(fileno=3 + n)
    s.setblocking(False)
    sockets[s] = name
# Told to end, it ends between two answers and never within one.
told, tell = os.pipe()
os.set_blocking(tell, False)
signal.set_wakeup_fd(tell)
signal.signal(signal.SIGTERM, lambda *_: None)
while True:
    ready = select.select([told, *sockets], [], [])[0]
    if told in ready:
        sys.exit(0)
    for s in ready:
        answer = f"{sockets[s]} {generation}".encode()
        try:
            if s.type == socket.SOCK_DGRAM:
                data, peer = s.recvfrom(100)
                s.sendto(answer + b" " + data, peer)
            else:
                connection, _ = s.accept()
                connection.sendall(answer)
                connection.close()
        except OSError:
            pass  # another generation was first, or the peer has gone
"#;

fn setup(listen: &str) -> Setup {
    let setup = Setup::configuration(&configuration(listen));
    setup.write("echo.py", ECHO);
    setup
}

fn configuration(listen: &str) -> String {
    format!("[service.echo]\ncommand = [\"python3\", \"{{dir}}/echo.py\"]\nlisten = [{listen}]\n")
}

fn reconfigure(supervisor: &Supervisor, listen: &str) {
    supervisor.write("heirloom.toml", &configuration(listen));
}

fn read(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn tcp(address: &str) -> String {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    read(stream)
}

fn unix(path: &Path) -> String {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    read(stream)
}

fn unix_of(address: &SockAddr, kind: Type) -> String {
    let socket = Socket::new(Domain::UNIX, kind, None).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(address).unwrap();
    let mut bytes = [0; 100];
    let length = (&socket).read(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

fn udp(address: &str) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"hi", address).unwrap();
    let mut bytes = [0; 100];
    let length = socket.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

#[test]
fn every_kind_of_listener_survives_a_reload_as_the_same_socket() {
    let name = format!("heirloom-test-{}", std::process::id());
    let supervisor = setup(&format!(
        "\"four=tcp:127.0.0.1:0\", \"six=tcp:[::1]:0\", \"both=tcp:[::]:0\", \"dgram=udp:127.0.0.1:0\", \
         \"path=unix:{{dir}}/a.sock,mode=640\", \"seq=unix-seqpacket:{{dir}}/q.sock\", \"abstract=unix:@{name}\""
    ))
    .start();
    let names = ["four", "six", "both", "dgram", "path", "seq", "abstract"];
    let bound = |supervisor: &Supervisor| names.map(|name| supervisor.bound(name));
    let before = bound(&supervisor);
    for generation in 1..=3 {
        let [four, six, both, dgram, path, seq, _] = &bound(&supervisor);
        assert_eq!(tcp(four), format!("four {generation}"));
        assert_eq!(tcp(six), format!("six {generation}"));
        let port = both.rsplit_once(':').unwrap().1;
        assert_eq!(
            tcp(&format!("127.0.0.1:{port}")),
            format!("both {generation}")
        );
        assert_eq!(tcp(&format!("[::1]:{port}")), format!("both {generation}"));
        assert_eq!(udp(dgram), format!("dgram {generation} hi"));
        assert_eq!(unix(Path::new(path)), format!("path {generation}"));
        let seq = SockAddr::unix(seq).unwrap();
        assert_eq!(unix_of(&seq, Type::SEQPACKET), format!("seq {generation}"));
        let named = SockAddr::unix(format!("\0{name}")).unwrap();
        assert_eq!(
            unix_of(&named, Type::STREAM),
            format!("abstract {generation}")
        );
        let mut supervisor_settled = supervisor.events();
        supervisor.reload();
        supervisor_settled.wait_for("gone");
    }
    assert_eq!(bound(&supervisor), before);
    let mode = std::fs::metadata(supervisor.path("a.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    let paths = [supervisor.path("a.sock"), supervisor.path("q.sock")];
    supervisor.stop();
    assert!(paths.iter().all(|path| !path.exists()) || !paths[0].parent().unwrap().exists());
}

#[test]
fn queued_datagrams_and_connections_wait_for_the_next_generation() {
    let supervisor = setup("\"tcp=tcp:127.0.0.1:0\", \"udp=udp:127.0.0.1:0\"").start();
    let (address, datagram) = (supervisor.bound("tcp"), supervisor.bound("udp"));
    // Nobody serves between two sequential generations.
    supervisor.write(
        "heirloom.toml",
        &configuration("\"tcp=tcp:127.0.0.1:0\", \"udp=udp:127.0.0.1:0\"").replace(
            "[service.echo]\n",
            "[service.echo]\nstrategy = \"sequential\"\n",
        ),
    );
    let (_, pid) = supervisor.serving();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGSTOP).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let streams: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();
    for number in 0..20 {
        socket
            .send_to(format!("{number}").as_bytes(), &datagram)
            .unwrap();
    }
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| supervisor.reload());
        let mut events = supervisor.events();
        events.wait_for("draining");
        // It cannot end by itself: it is stopped. What it had not accepted is not lost with it.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        assert_eq!(reload.join().unwrap()["strategy"], "sequential");
    });
    for stream in streams {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(read(stream), "tcp 2");
    }
    let mut answers: Vec<String> = (0..20)
        .map(|_| {
            let mut bytes = [0; 100];
            let length = socket.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        })
        .collect();
    answers.sort();
    let mut expected: Vec<String> = (0..20).map(|number| format!("udp 2 {number}")).collect();
    expected.sort();
    assert_eq!(answers, expected);
    supervisor.stop();
}

#[test]
fn a_reload_adds_removes_and_changes_listeners() {
    let supervisor = setup("\"a=tcp:127.0.0.1:0\", \"b=tcp:127.0.0.1:0\"").start();
    let (a, b) = (supervisor.bound("a"), supervisor.bound("b"));
    reconfigure(
        &supervisor,
        "\"a=tcp:127.0.0.1:0\", \"c=unix:{dir}/c.sock\"",
    );
    supervisor.reload();
    assert_eq!(supervisor.bound("a"), a);
    assert_eq!(tcp(&a), "a 2");
    assert_eq!(unix(&supervisor.path("c.sock")), "c 2");
    // The former generation may still be draining, and holds b as long as it does.
    crate::harness::eventually("b is closed", || TcpStream::connect(&b).is_err());
    // A wildcard in place of the address, on the same port. What connects to the former address in
    // the instant in which its last owner closes it is reset; from then on the new one answers.
    let port = a.rsplit_once(':').unwrap().1;
    reconfigure(&supervisor, &format!("\"a=tcp:0.0.0.0:{port}\""));
    supervisor.reload();
    crate::harness::eventually("the wildcard's program answers", || {
        let mut answer = String::new();
        let read = TcpStream::connect(&a).and_then(|mut s| s.read_to_string(&mut answer));
        read.is_ok() && answer == "a 3"
    });
    assert!(!supervisor.path("c.sock").exists());
    supervisor.stop();
}

#[test]
fn a_change_that_fails_is_undone_whole() {
    let supervisor = setup("\"a=tcp:127.0.0.1:0\", \"u=unix:{dir}/u.sock,mode=600\"").start();
    let before = supervisor.service()["listeners"].clone();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().port();
    // The new path and the new mode come before the port that is taken.
    reconfigure(
        &supervisor,
        &format!(
            "\"n=unix:{{dir}}/n.sock\", \"u=unix:{{dir}}/u.sock,mode=666\", \"t=tcp:127.0.0.1:{busy}\""
        ),
    );
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("somebody else listens there"), "{said}");
    // And a program that fails after everything was bound.
    reconfigure(
        &supervisor,
        "\"n=unix:{dir}/n.sock\", \"u=unix:{dir}/u.sock,mode=666\"",
    );
    let text = std::fs::read_to_string(supervisor.path("heirloom.toml")).unwrap();
    supervisor.write(
        "heirloom.toml",
        &text.replace("\"python3\", ", "\"false\", "),
    );
    supervisor.expect(1, ["reload"]);
    assert_eq!(supervisor.service()["listeners"], before);
    assert!(!supervisor.path("n.sock").exists());
    let mode = std::fs::metadata(supervisor.path("u.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(unix(&supervisor.path("u.sock")), "u 1");
    supervisor.stop();
}

#[test]
fn a_stale_path_is_replaced_and_a_live_one_left_alone() {
    let setup = setup("\"u=unix:{dir}/u.sock\"");
    let path = setup.path("u.sock");
    drop(UnixListener::bind(&path).unwrap());
    let stale = std::fs::metadata(&path).unwrap().ino();
    let supervisor = setup.start();
    assert_ne!(std::fs::metadata(&path).unwrap().ino(), stale);
    assert_eq!(unix(&path), "u 1");
    // Another supervisor that wants the same path fails and does not touch it.
    let mut second = Setup::program(["sleep", "60"])
        .no_default_listener()
        .args(["--listen", &format!("u=unix:{}", path.display())])
        .spawn();
    assert_eq!(second.wait(), Some(1));
    assert!(
        second.log().contains("somebody answers on it"),
        "{}",
        second.log()
    );
    assert_eq!(unix(&path), "u 1");
    supervisor.stop();
}

#[test]
fn a_broken_configuration_is_refused_with_its_line() {
    let supervisor = setup("\"a=tcp:127.0.0.1:0\"").start();
    supervisor.write(
        "heirloom.toml",
        "[service.echo]\ncommand = [\"x\"]\nlisten = [\"nonsense\"]\n",
    );
    let said = supervisor.expect(2, ["reload"]);
    assert!(said.contains("line 3"), "{said}");
    supervisor.signal(nix::sys::signal::Signal::SIGHUP);
    crate::harness::eventually("the refusal is logged", || {
        supervisor.log().contains("the reload was refused")
    });
    assert_eq!(tcp(&supervisor.bound("a")), "a 1");
    supervisor.stop();
}

#[test]
fn services_come_and_go_with_the_configuration_and_are_handed_over_alone() {
    let two = "[service.a]\ncommand = [\"python3\", \"{dir}/echo.py\"]\nlisten = [\"a=tcp:127.0.0.1:0\"]\n\
               [service.b]\ncommand = [\"python3\", \"{dir}/echo.py\"]\nlisten = [\"b=tcp:127.0.0.1:0\"]\n";
    let setup = Setup::configuration(two);
    setup.write("echo.py", ECHO);
    let mut supervisor = setup.start();
    supervisor.expect(0, ["reload", "b"]);
    assert_eq!(tcp(&supervisor.bound("a")), "a 1");
    assert_eq!(tcp(&supervisor.bound("b")), "b 2");
    let said = supervisor.expect(2, ["reload", "c"]);
    assert!(said.contains("no service c"), "{said}");
    let a = supervisor.bound("a");
    supervisor.write(
        "heirloom.toml",
        &two.replace("service.a", "service.c")
            .replace("\"a=", "\"c="),
    );
    supervisor.expect(0, ["reload"]);
    assert_eq!(tcp(&supervisor.bound("c")), "c 1");
    supervisor.wait_until("a has gone", |status| {
        status["services"].as_array().unwrap().len() == 2
    });
    assert!(TcpStream::connect_timeout(&a.parse().unwrap(), Duration::from_secs(5)).is_err());
    supervisor.stop();
}

#[test]
fn a_reload_that_is_refused_for_one_service_has_touched_none() {
    let two = "[service.a]\ncommand = [\"python3\", \"{dir}/echo.py\"]\nlisten = [\"a=tcp:127.0.0.1:0\"]\n\
               [service.b]\ncommand = [\"python3\", \"{dir}/echo.py\"]\nlisten = [\"b=tcp:127.0.0.1:0\"]\n";
    let setup = Setup::configuration(two);
    setup.write("echo.py", ECHO);
    let supervisor = setup.start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().port();
    let other = format!(
        "[service.a]\ncommand = [\"python3\", \"{{dir}}/echo.py\"]\nlisten = [\"a=tcp:127.0.0.1:0\"]\n\
         [service.z]\ncommand = [\"python3\", \"{{dir}}/echo.py\"]\nlisten = [\"z=tcp:127.0.0.1:{busy}\"]\n"
    );
    supervisor.write("heirloom.toml", &other);
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("service z"), "{said}");
    assert_eq!(tcp(&supervisor.bound("a")), "a 1");
    assert_eq!(tcp(&supervisor.bound("b")), "b 1");
    supervisor.stop();
}

#[test]
fn a_rollback_brings_the_listeners_back_too() {
    let supervisor = setup("\"http=tcp:127.0.0.1:0\", \"gone=unix:{dir}/gone.sock\"").start();
    let http = supervisor.bound("http");
    reconfigure(
        &supervisor,
        "\"admin=unix:{dir}/admin.sock\", \"http=tcp:127.0.0.1:0\"",
    );
    supervisor.reload();
    assert_eq!(tcp(&http), "http 2");
    assert!(!supervisor.path("gone.sock").exists());
    supervisor.expect(0, ["rollback"]);
    // Each under the name and in the place it had.
    assert_eq!(tcp(&http), "http 3");
    assert_eq!(unix(&supervisor.path("gone.sock")), "gone 3");
    assert!(!supervisor.path("admin.sock").exists());
    supervisor.stop();
}
