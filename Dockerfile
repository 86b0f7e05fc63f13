# The package with its pinned dependencies, for a CPU or an NVIDIA GPU (torch brings the CUDA libraries).
#   docker build -t sdr_lightning .
#   docker run --rm -v "$PWD/runs:/work/runs" sdr_lightning reproduce sdr:scenes/study.yaml
#   docker run --rm --gpus all -v /folder:/data -v "$PWD/runs:/work/runs" sdr_lightning fit --config sdr:... --run_dir runs/mine
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in constraints.txt README.md LICENSE ./
COPY sdr_lightning sdr_lightning
COPY experiments experiments
RUN pip install --no-cache-dir -c constraints.txt '.[towers,search,onnx]' && rm -rf /src

WORKDIR /work
ENTRYPOINT ["sdr"]
CMD ["--help"]
