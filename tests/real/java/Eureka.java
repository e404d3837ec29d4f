import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.EnableAutoConfiguration;
import org.springframework.cloud.netflix.eureka.server.EnableEurekaServer;

/** A Eureka server of one. Scans for no components: in the unnamed package it would find everybody's. Run from source: `java -cp 'LIBRARIES/*' Eureka.java --server.port=N`. */
@EnableAutoConfiguration
@EnableEurekaServer
public class Eureka {
    public static void main(String[] arguments) {
        SpringApplication.run(Eureka.class, arguments);
    }
}
