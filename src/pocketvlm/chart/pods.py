"""What the chart lets you set for pods: images, stages, the conductor, pools of GPU nodes.

Keys are in camel case in values.yaml. None: the key is absent there, and `defaults` or the chart decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class KubernetesType:
    """A value of Kubernetes' own API; the schema takes its keys from there, so that a misspelt one is refused too."""

    name: str

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """A mark that docs/generate.py replaces by the real schema."""
        del schema, handler
        return {"kubernetes": self.name}


Affinity = Annotated[dict[str, Any], KubernetesType("core.v1.Affinity")]
EnvVar = Annotated[dict[str, Any], KubernetesType("core.v1.EnvVar")]
Resources = Annotated[dict[str, Any], KubernetesType("core.v1.ResourceRequirements")]
SpreadConstraint = Annotated[dict[str, Any], KubernetesType("core.v1.TopologySpreadConstraint")]
Toleration = Annotated[dict[str, Any], KubernetesType("core.v1.Toleration")]
Volume = Annotated[dict[str, Any], KubernetesType("core.v1.Volume")]
VolumeMount = Annotated[dict[str, Any], KubernetesType("core.v1.VolumeMount")]

Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Tag = str | int
"""A tag that is a commit can be all digits, which --set makes a number of."""
Seconds = Annotated[int, Field(ge=1)]
Labels = dict[str, str]


class ChartBlock(BaseModel):
    """A closed block: a key that is not here is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, alias_generator=to_camel, populate_by_name=True
    )


class Images(ChartBlock):
    """The images of all pods but the object store's: `<registry>/<repositoryPrefix><stage>:<tag>`."""

    registry: str = ""
    """Registry, with its path, for example `registry.example.com/team`; empty: the names alone, as on a node that has them."""
    repository_prefix: str = "pocketvlm-"
    """Comes before `labeller`, `trainer`, ..., `conductor`."""
    tag: Tag = ""
    """Tag of all of them; empty: the chart's appVersion."""
    pull_policy: PullPolicy = "IfNotPresent"
    """When the node asks the registry."""
    pull_secrets: list[str] = []
    """Names of secrets of type `kubernetes.io/dockerconfigjson` in the namespace."""


class Image(ChartBlock):
    """The image of one stage, where it differs from `image`."""

    repository: str | None = None
    """Full name with the registry, instead of registry, prefix and stage."""
    tag: Tag | None = None
    """Tag."""
    digest: Digest | None = None
    """`sha256:...`; decides, whatever the tag says."""
    pull_policy: PullPolicy | None = None
    """When the node asks the registry."""
    pull_secrets: list[str] | None = None
    """Instead of `image.pullSecrets`."""


class Pod(ChartBlock):
    """What can be set for every Job and its pods."""

    resources: Resources | None = None
    """Requests and limits. CPU threads follow the CPU limit, or else the request."""
    node_selector: Labels | None = None
    """Labels of the node."""
    tolerations: list[Toleration] | None = None
    """Taints of the node."""
    affinity: Affinity | None = None
    """Node and pod affinity."""
    topology_spread_constraints: list[SpreadConstraint] | None = None
    """How pods lie on the nodes; without a labelSelector: those of the same stage."""
    priority_class_name: str | None = None
    """PriorityClass of the pods; empty: the cluster's default."""
    runtime_class_name: str | None = None
    """RuntimeClass, for example `nvidia`; empty: the cluster's default."""
    extra_env: list[EnvVar] | None = None
    """More variables; a name that the chart sets is refused."""
    extra_volumes: list[Volume] | None = None
    """More volumes, of the kinds that Pod Security `restricted` allows."""
    extra_volume_mounts: list[VolumeMount] | None = None
    """Where they are mounted."""
    job_labels: Labels | None = None
    """More labels of the Job."""
    job_annotations: Labels | None = None
    """More annotations of the Job."""
    pod_labels: Labels | None = None
    """More labels of the pods, for example `azure.workload.identity/use: "true"`."""
    pod_annotations: Labels | None = None
    """More annotations of the pods."""
    backoff_limit: int | None = Field(default=None, ge=0, le=100)
    """Failed pods that are replaced, for each shard or node; exit codes 2, 3 and 4 fail at once."""
    active_deadline_seconds: Seconds | None = None
    """Longest time of the Job, all its tries and disruptions together, from when it is released."""
    termination_grace_period_seconds: Seconds | None = None
    """Between SIGTERM and SIGKILL."""


class Defaults(Pod):
    """What can be set for all stages at once."""

    startup_timeout_seconds: Seconds | None = None
    """The run fails when a pod has not started after this time: wrong image, missing secret."""
    unschedulable_timeout_seconds: Seconds | None = None
    """The same while no node fits: time for an autoscaler to bring one."""
    work_size: Quantity | None = None
    """Limit of the emptyDir `/work`, where models and datasets lie while a stage works."""
    tmp_size: Quantity | None = None
    """Limit of the emptyDir `/tmp`."""


class Stage(Defaults):
    """What can be set for one stage."""

    image: Image | None = None
    """Where its image differs from `image`."""


class ShardedStage(Stage):
    """A stage whose work can be shared."""

    shards: int = Field(default=1, ge=1, le=1000)
    """More than 1: an Indexed Job of so many pods, each with its share; the last one publishes."""


class TrainerStage(Stage):
    """The stage that needs GPUs."""

    gpus: int = Field(default=0, ge=0, le=16)
    """GPUs of each node. More than 1: `accelerate launch`."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name of the device plugin's resource."""
    preset: str = ""
    """A key of `presets`: which nodes, which taints."""
    nodes: int = Field(default=1, ge=1, le=64)
    """More than 1: an Indexed Job with a headless Service."""
    rendezvous_port: int = Field(default=29500, ge=1024, le=65535)
    """Port of the first node where the processes meet."""
    shm_size: Quantity = "1Gi"
    """Limit of `/dev/shm`, which counts as memory; the runtime's own is 64 MiB."""


class Stages(ChartBlock):
    """Where a stage differs from `defaults`. Mappings are merged; of lists, extraEnv, extraVolumes and extraVolumeMounts
    are added to those of `defaults`, any other replaces it."""

    labeller: ShardedStage = ShardedStage()
    """Images and labels to a dataset."""
    trainer: TrainerStage = TrainerStage(
        resources={"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"memory": "32Gi"}},
        active_deadline_seconds=259200, termination_grace_period_seconds=120, work_size="100Gi",
    )  # fmt: skip
    """Dataset to a checkpoint."""
    merger: Stage = Stage()
    """Checkpoint to a plain model."""
    quantiser: Stage = Stage()
    """Model to GGUF pairs."""
    evaluator: ShardedStage = ShardedStage(resources={"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "16Gi"}})
    """GGUF pairs to measurements, and a release."""


class Preset(ChartBlock):
    """A pool of GPU nodes."""

    nodes: dict[str, list[str]]
    """Label -> values. A node with one of these labels will do, so that one preset serves several clouds."""
    tolerations: list[Toleration] = []
    """Taints of such nodes."""


class Conductor(Pod):
    """The Job that releases the stages one after the other. Takes from `defaults` what it does not set itself."""

    image: Image | None = None
    """Where its image differs from `image`."""
    resources: Resources | None = {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}}
    """Requests and limits."""
    backoff_limit: int | None = Field(default=10, ge=0, le=100)
    """Failed pods that are replaced. A new one goes on where the cluster stands."""
    active_deadline_seconds: Seconds | None = 604800
    """Longest time of the whole run."""
    termination_grace_period_seconds: Seconds | None = 10
    """It keeps no state and leaves at once."""
    linger_seconds: int | None = Field(default=None, ge=0)
    """Time for a last scrape after the end; default: 0, with the PodMonitor two of its intervals."""


DEFAULTS = Defaults(
    resources={"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}},
    node_selector={}, tolerations=[], affinity={}, topology_spread_constraints=[], priority_class_name="",
    runtime_class_name="", extra_env=[], extra_volumes=[], extra_volume_mounts=[], job_labels={}, job_annotations={},
    pod_labels={}, pod_annotations={}, backoff_limit=3, active_deadline_seconds=86400,
    termination_grace_period_seconds=30, startup_timeout_seconds=600, unschedulable_timeout_seconds=1800,
    work_size="50Gi", tmp_size="2Gi",
)  # fmt: skip

GPU_TAINTS = [
    {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
]
"""GKE's own, which many other pools use as well; and the one of AKS's instructions."""


PRESETS = {
    "l40s": Preset(
        nodes={
            "nvidia.com/gpu.product": ["NVIDIA-L40S"],
            "karpenter.k8s.aws/instance-gpu-name": ["l40s"],
            "eks.amazonaws.com/instance-gpu-name": ["l40s"],
            "node.kubernetes.io/instance-type": [
                f"g6e.{size}xlarge" for size in ("", "2", "4", "8", "12", "16", "24", "48")
            ],
        },
        tolerations=GPU_TAINTS,
    ),
    "a100": Preset(
        nodes={
            "nvidia.com/gpu.product": [
                "NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-PCIE-40GB", "NVIDIA-A100-80GB-PCIe",
            ],
            "cloud.google.com/gke-accelerator": ["nvidia-tesla-a100", "nvidia-a100-80gb"],
            "karpenter.k8s.aws/instance-gpu-name": ["a100"],
            "eks.amazonaws.com/instance-gpu-name": ["a100"],
            "karpenter.azure.com/sku-gpu-name": ["A100"],
            "node.kubernetes.io/instance-type": [
                "p4d.24xlarge", "p4de.24xlarge", "Standard_NC24ads_A100_v4", "Standard_NC48ads_A100_v4",
                "Standard_NC96ads_A100_v4", "Standard_ND96asr_v4", "Standard_ND96amsr_A100_v4",
            ],
        },
        tolerations=GPU_TAINTS,
    ),
}  # fmt: skip
