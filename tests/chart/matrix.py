"""Sets of values that between them turn on all that the chart can do."""

from __future__ import annotations

from typing import Any

LONG = "a-release-name-that-takes-all-of-the-53-characters-ok"
"""Helm allows 53."""

MINIO = {"objectStore": {"enabled": True, "developmentCredentials": True}}
MONITORED = {
    "metrics": {
        "port": 8080,
        "podMonitor": {"enabled": True, "renderMode": "alwaysRender", "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "renderMode": "alwaysRender"},
        "dashboard": {"enabled": True, "annotations": {"folder": "Models"}},
    }
}
SERVICES = {"existingSecret": "services", "teacherKey": "openai", "secondTeacherKey": "other", "unsplashKey": "unsplash",
            "kaggleUsernameKey": "kaggle-user", "kaggleKeyKey": "kaggle-key"}  # fmt: skip
NODES = {"stages": {"trainer": {"gpus": 2, "nodes": 3, "preset": "a100"}}}
SHARDS = {"stages": {"labeller": {"shards": 12}, "evaluator": {"shards": 3}}}
SETTINGS = {
    "nodeSelector": {"pool": "batch"},
    "tolerations": [{"key": "batch", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}
    ]}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "priorityClassName": "batch", "runtimeClassName": "nvidia",
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
                 {"name": "FROM_A_SECRET", "valueFrom": {"secretKeyRef": {"name": "some", "key": "key"}}}],
    "extraVolumes": [{"name": "certificates", "configMap": {"name": "certificates"}}],
    "extraVolumeMounts": [{"name": "certificates", "mountPath": "/etc/ssl/certs", "readOnly": True}],
    "jobLabels": {"team": "vision"}, "jobAnnotations": {"cost": "low"}, "podLabels": {"team": "vision"},
    "podAnnotations": {"safe-to-evict": "false"},
}  # fmt: skip

MATRIX: dict[str, dict[str, Any]] = {
    "plain": {},
    "minio": MINIO,
    "minio without a claim": {"objectStore": {**MINIO["objectStore"], "persistence": {"enabled": False}}},
    "minio with a secret": {"objectStore": {"enabled": True}, "store": {"existingSecret": "keys"}},
    "S3 by workload identity": {
        "store": {"url": "s3://bucket/prefix"},
        "serviceAccounts": {"stages": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}}},
    },
    "S3 with keys": {
        "store": {
            "url": "s3://bucket", "endpoint": "https://s3.example.com:8443", "existingSecret": "keys", "sessionTokenKey": "t",
        },
        "hub": {"existingSecret": "hub"},
        "keys": SERVICES,
    },
    "monitored": MONITORED,
    "network policies": {"networkPolicies": {"enabled": True, "extraEgress": [{"ports": [{"port": 3128}]}]}, **MINIO, **NODES},
    "nodes": NODES,
    "shards": SHARDS,
    "every pod setting": {"defaults": SETTINGS, "image": {"pullSecrets": ["registry"]}},
    "large numbers": {
        "defaults": dict.fromkeys(
            ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "startupTimeoutSeconds", "unschedulableTimeoutSeconds"],
            31536000,
        ),
        "conductor": {"activeDeadlineSeconds": 31536000},
        "podSecurity": {"user": 1000680000, "group": 1000680000},
        "image": {"tag": 12345678},
        "metrics": {"port": 65535, "podMonitor": {"enabled": True, "renderMode": "alwaysRender", "intervalSeconds": 31536000},
                    "prometheusRule": {"enabled": True, "renderMode": "alwaysRender", "noProgressSeconds": 31536000}},
    },
    "queues": {"kueue": {"queueName": "gpus", "conductorQueueName": "small"}},
    "another platform": {"podSecurity": {"user": None, "group": None}},
    "accounts that exist": {"serviceAccounts": {"conductor": {"create": False, "name": "c"}, "stages": {"create": False}}},
}  # fmt: skip
