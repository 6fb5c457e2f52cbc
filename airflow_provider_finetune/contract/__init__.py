"""What the Airflow side and the container side agree on. Standard library only; imports nothing else of ours."""
