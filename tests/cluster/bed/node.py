"""One node: containerd, kubelet, network and names of the pods, and the images, which are made from nothing."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

from tests.cluster.bed.certificates import client, kubeconfig
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.processes import BRIDGE, CGROUP, NODE, free_port

GATEWAY = "10.244.0.1"
SUBNET = "10.244.0.0/24"
PAUSE_IMAGE = "test.local/pause:1"
EMPTY_IMAGE = "test.local/empty:1"
"""A root with nothing in it: the machine's programs are mounted there."""
GPUS = 8

COREDNS = """cluster.local:53 {{
    bind {gateway}
    errors
    kubernetes cluster.local {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
}}
"""

CONTAINERD = """version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Lowering a process's score needs a capability that root in a container often lacks.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
# Copies instead of overlays, which cannot be stacked on the overlay of a container.
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{folder}/runc"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/network"
"""

NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            # Neither gateway nor masquerading: pods meet each other and the name server, and the machine's forwarding
            # and firewall stay as they are.
            "type": "bridge",
            "bridge": BRIDGE,
            "ipam": {"type": "host-local", "subnet": SUBNET},
        }
    ],
}


def start(plane: ControlPlane) -> None:
    """Start the node and wait until it is ready to run pods."""
    folder, processes = plane.folder, plane.processes
    for command in (("add", BRIDGE, "type", "bridge"), ("set", BRIDGE, "up")):
        subprocess.run(["ip", "link", *command], check=True)
    subprocess.run(["ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE], check=True)
    (folder / "network").mkdir()
    (folder / "network" / "pods.conflist").write_text(json.dumps(NETWORK))
    (folder / "containerd.toml").write_text(CONTAINERD.format(folder=folder, pause=PAUSE_IMAGE))
    (folder / "Corefile").write_text(COREDNS.format(gateway=GATEWAY, kubeconfig=plane.kubeconfig))
    processes.start("coredns", plane.programs / "coredns", "-conf", folder / "Corefile")
    processes.start("containerd", "/usr/bin/containerd", "--config", folder / "containerd.toml")
    processes.wait("containerd", lambda: _ctr(folder, "version").returncode == 0)
    import_image(folder, PAUSE_IMAGE, {"pause": plane.programs / "pause"}, ["/pause"])
    # Libraries outside the usual folders are found by the linker's own list only.
    import_image(folder, EMPTY_IMAGE, {"etc/ld.so.cache": Path("/etc/ld.so.cache"), "etc/passwd": Path("/etc/passwd")})
    _start_kubelet(plane)


def _start_kubelet(plane: ControlPlane) -> None:
    folder = plane.folder
    certificate, key = plane.authority.issue(f"system:node:{NODE}", "system:nodes", hosts=(NODE,))
    authority = str(plane.authority.path)
    port = free_port()
    (folder / "resolv.conf").touch()
    content = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": port,
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": authority}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "clusterDNS": [GATEWAY],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folder / "resolv.conf"),
        # The machine is not the cluster's: it reserves nothing, changes no firewall and no limit, evicts nothing.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s",
    }
    (folder / "kubelet.json").write_text(json.dumps(content, indent=1))
    server = json.loads(plane.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    config = kubeconfig(folder / "kubelet.kubeconfig", server, plane.authority.path, client(certificate, key))
    plane.processes.start(
        "kubelet",
        plane.programs / "kubelet",
        f"--config={folder / 'kubelet.json'}",
        f"--kubeconfig={config}",
        f"--root-dir={folder / 'kubelet'}",
        f"--hostname-override={NODE}",
        f"--cert-dir={folder / 'tmp'}",
    )


def await_ready(plane: ControlPlane) -> None:
    """Wait until the node takes pods and has its pretended GPUs."""
    kubectl = (plane.programs / "kubectl", f"--kubeconfig={plane.kubeconfig}")

    def ready() -> bool:
        answer = subprocess.run([*kubectl, "get", "node", NODE, "--output=json"], capture_output=True, check=True)
        status = json.loads(answer.stdout)["status"]
        kinds = {condition["type"]: condition["status"] for condition in status["conditions"]}
        return kinds["Ready"] == "True" and status["allocatable"].get("nvidia.com/gpu") == str(GPUS)

    plane.processes.wait("kubelet", lambda: _pretend_gpus(kubectl))
    plane.processes.wait("kubelet", ready)


def _pretend_gpus(kubectl: tuple[object, ...]) -> bool:
    patch = json.dumps({"status": {"capacity": {"nvidia.com/gpu": str(GPUS)}}})
    command = [str(item) for item in (*kubectl, "patch", "node", NODE, "--subresource=status", f"--patch={patch}")]
    return subprocess.run(command, capture_output=True, check=True).returncode == 0


def _ctr(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["ctr", f"--address={folder}/containerd.sock", "--namespace=k8s.io", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def import_image(folder: Path, name: str, files: dict[str, Path], entrypoint: list[str] | None = None) -> None:
    """Put an image with nothing but some of the machine's files onto the node.

    :param files: path in the image, and the file that is copied there if the machine has it.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        directory = tarfile.TarInfo("tmp")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(directory)
        for path, source in files.items():
            if source.exists():
                archive.add(source, path, recursive=False)
    archive_path = folder / "tmp" / "image.tar"
    archive_path.write_bytes(_oci_layout(name, layer.getvalue(), entrypoint or []))
    import_archive(folder, archive_path)
    archive_path.unlink()


def import_archive(folder: Path, archive: Path) -> None:
    """Put an image onto the node."""
    # What it holds is unpacked when the first pod needs it, by the kind of storage that pods use.
    _ctr(folder, "images", "import", "--no-unpack", archive).check_returncode()


def _oci_layout(name: str, layer: bytes, entrypoint: list[str]) -> bytes:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    content = blob("layer.v1.tar", layer)
    config = {
        "architecture": machine.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": entrypoint},
        "rootfs": {"type": "layers", "diff_ids": [content["digest"]]},
    }
    described = blob("config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "config": described, "layers": [content]}
    listed = blob("manifest.v1+json", json.dumps(manifest).encode())
    listed["annotations"] = {"io.containerd.image.name": name}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for path, data in blobs.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return tar.getvalue()
