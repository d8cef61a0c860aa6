# On CPUs:      docker build -t sepo .
# On NVIDIA:    docker build -t sepo --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --build-arg EXTRAS=qlora,report .
# docker run --gpus all -v "$PWD:/work" -w /work sepo train-oracle ...
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=lora,report
WORKDIR /sepo
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY sepo_cli sepo_cli
COPY stages stages
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" ".[$EXTRAS]"
ENTRYPOINT ["sepo"]
