"""The program that runs beside the GPU.

It imports :mod:`airflow_provider_finetune.contract` and nothing else of ours: no Airflow, no Kubernetes. Everything
imported while a module loads is the standard library, so that a missing or broken training library ends in an
outcome that says so, and not in a traceback before the first line of ours has run.
"""
