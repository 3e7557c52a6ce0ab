"""How an installed RabbitMQ is found, and how its processes are started and stopped."""
