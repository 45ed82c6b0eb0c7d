"""What each pod asks for, mounts and may do; where a node on AWS has the same duty, it too."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from cluster_files import documents, pod_templates, the_document

PODS = ["submitter", "head", "cpu", "gpu", "nightly"]


def test_the_list_of_pods_is_whole():
    assert list(pod_templates()) == PODS


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_asks_for_what_it_may_use_and_may_gain_no_privileges(pod):
    spec = pod_templates()[pod]["spec"]
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in spec["containers"]:
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_mounts_only_volumes_it_has(pod):
    spec = pod_templates()[pod]["spec"]
    mounted = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", [])}
    assert mounted == {volume["name"] for volume in spec.get("volumes", [])}


def test_the_shared_memory_of_every_ray_pod_holds_its_object_store():
    cluster = the_document("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        [volume] = group["template"]["spec"]["volumes"]
        gib = re.fullmatch(r"(\d+)Gi", volume["emptyDir"]["sizeLimit"])
        assert gib, volume
        assert volume["emptyDir"]["medium"] == "Memory"
        assert int(group["rayStartParams"]["object-store-memory"]) < int(gib[1]) * 2**30


def test_no_task_runs_on_the_head():
    assert the_document("rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    aws = the_document("aws.yaml")
    assert aws["available_node_types"][aws["head_node_type"]]["resources"] == {"CPU": 0}


def test_only_the_head_carries_a_kubernetes_token():
    carried = {
        pod: template["spec"].get("automountServiceAccountToken", True) for pod, template in pod_templates().items()
    }
    assert carried == {"submitter": False, "head": True, "cpu": False, "gpu": False, "nightly": True}


def test_only_the_gpu_group_asks_for_gpus_and_both_groups_start_from_nothing():
    groups = the_document("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for group in groups
    }
    assert gpus == {"cpu": None, "gpu": "1"}
    assert [group["minReplicas"] for group in groups] == [0, 0]
    assert all(group["maxReplicas"] > 0 for group in groups)


def test_ray_asks_for_its_token_and_the_dashboard_is_not_put_outside():
    cluster = the_document("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False
    aws = the_document("aws.yaml")
    assert "-e RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in " ".join(aws["head_start_ray_commands"])


def test_the_driver_is_given_the_30_s_in_which_it_hands_back():
    head = pod_templates()["head"]["spec"]
    [wait] = [entry["value"] for entry in head["containers"][0]["env"] if entry["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    assert 30 < int(wait) < head["terminationGracePeriodSeconds"]
    assert f"-e RAY_JOB_STOP_WAIT_TIME_S={wait}" in the_document("aws.yaml")["docker"]["run_options"]
    # The name is Ray's, read on the head by the process that runs the driver.
    supervisor = importlib.util.find_spec("ray.dashboard.modules.job.job_supervisor")
    assert supervisor is not None
    assert supervisor.origin is not None
    assert '"RAY_JOB_STOP_WAIT_TIME_S"' in Path(supervisor.origin).read_text()


def test_nights_do_not_overlap_and_the_nightly_pod_may_do_what_its_script_does():
    account, role, binding, cron_job = documents("nightly.yaml")
    spec = cron_job["spec"]
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert the_document("rayjob.yaml")["spec"]["activeDeadlineSeconds"] < 24 * 3600
    # `create` of a fixed name would fail on the second night.
    assert "name" not in the_document("rayjob.yaml")["metadata"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    [script] = pod["containers"][0]["args"]
    assert set(re.findall(r"kubectl (\w+)", script)) == set(role["rules"][0]["verbs"])
